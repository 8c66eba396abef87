// Asking again while a view is shown and somebody sees it.

/** Call `action` now and every so many seconds; returns what ends that. */
export function every(seconds, action) {
  let isLeft = false;
  let timer = null;
  const turn = async () => {
    clearTimeout(timer);
    if (!document.hidden) await action();
    if (!isLeft) timer = setTimeout(turn, seconds * 1000);
  };
  turn();
  return () => {
    isLeft = true;
    clearTimeout(timer);
  };
}
