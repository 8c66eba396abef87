// The words of the page in English and Korean, and how it writes times and numbers.

const WORDS = {
  en: {
    runs: "Runs", ended: "Ended runs", waiting: "Waiting", deployments: "Deployments", letters: "Dead letters", queues: "Queues",
    skip: "Skip to the content", logIn: "Log in", logOut: "Log out", token: "Token (WORKER_CONSOLE_TOKEN)",
    wrongToken: "That is not the token.", connected: "live", disconnected: "not up to date: Redis or this page is away",
    menu: "Sections", language: "한국어", languageHint: "Show the page in Korean",
    search: "Search", searchRuns: "Search by job, plugin or step", status: "Status", all: "all", live: "live",
    waits: "waiting", failedRuns: "failed", haveEnded: "ended", noRuns: "No runs.", shown: "{shown} of {all} runs",
    showMore: "Show more", openJob: "Job", tasks: "{done} of {total} tasks", failedTasks: "{count} failed",
    left: "{time} left", progressOf: "progress of job {job}", since: "for {time}", took: "took {time}",
    waitsFor: "waits for {what}", error: "Error", step: "Step", stop: "Stop", reallyStop: "Stop it now?",
    stopSent: "stop was sent", timeline: "Steps", noSteps: "No step is known.", timeUnknown: "time not known",
    log: "Log", searchLog: "Search the log", level: "Level", follow: "Follow", wholeLog: "Load the whole log",
    lines: "{shown} of {all} lines", logEnded: "The log is over: {reason}.", noLines: "No lines yet.",
    failures: "Failed tasks", task: "Task", unknownRun: "No run of job {job} is known.", progress: "Progress",
    backToRuns: "All runs", noWaiting: "No run waits.", until: "until {time}", waitingRuns: "{count} runs",
    why: "Why", deployment: "Deployment", notDispatched: "its deployment is not asked for yet",
    dispatchedAs: "deployed by job {job}", dispatchSent: "its deployment was asked for {time} ago",
    dispatchFailed: "its deployment failed: {why}", name: "Name", route: "Route", replicas: "Replicas", agent: "Agent",
    noDeployments: "No deployments.", noLetters: "No dead letters.", reason: "Reason", time: "Time", job: "Job",
    replay: "Replay", reallyReplay: "Send it again?", replayed: "sent again", drop: "Drop", reallyDrop: "Throw it away?",
    dropped: "dropped", lettersShown: "The latest {shown} of {all}.", queue: "Queue", waitingMessages: "Waiting",
    delayed: "Delayed", held: "Workers hold {count} messages.", workers: "Workers", threads: "Threads",
    uptime: "Up for", noWorkers: "No worker answers.", noQueues: "This broker shows its queues itself.",
    loading: "Loading …", action: "Action", plugin: "Plugin", started: "Started", overall: "Overall", labels: "Labels", noLabels: "No labels yet.", wrongLabel: "{label}, is {truth}",
    logExpired: "The log of this run is not kept any more.",
    noEnded: "No ended runs are kept.", endedShown: "The latest {shown} of {all}.",
    errorExpired: "its error is not kept any more", failuresShown: "{shown} of {all} failed tasks are shown.",
    retry: "Retry the failed tasks", newJob: "Job that retries them",
    retryHint: "The number of a new job of the backend. It annotates exactly the tasks that failed.",
    retryRelease: "Release", sameRelease: "that of this run", skipAnnotated: "skip tasks that have data",
    priority: "Priority", priorityHint: "Priority: a number from 0 to 9. On Redis 0, the default, is the most urgent; on RabbitMQ it is the least.",
    dryRun: "dry run: only say what there is to do", retriedDry: "Sent: what there is to do is the result of",
    retried: "Sent: the retry is", retry_live: "This run has not ended.", retry_not_kept: "This run is not kept any more.",
    retry_no_tasks: "A run of this kind has no tasks.", retry_none_failed: "No task of this run has failed.",
    retry_job_taken: "Job {job} has a run already: a job runs once. Take a new one.",
    retry_invalid: "This run cannot be retried like that: {why}",
    PENDING: "pending", RUNNING: "running", SUCCEEDED: "succeeded", FAILED: "failed", STOPPED: "stopped",
  },
  ko: {
    runs: "실행", ended: "종료된 실행", waiting: "대기", deployments: "배포", letters: "배달 못 한 메시지", queues: "큐",
    skip: "본문으로 건너뛰기", logIn: "로그인", logOut: "로그아웃", token: "토큰 (WORKER_CONSOLE_TOKEN)",
    wrongToken: "토큰이 올바르지 않습니다.", connected: "실시간", disconnected: "최신이 아님: Redis 또는 서버 연결 끊김",
    menu: "메뉴", language: "English", languageHint: "페이지를 영어로 보기",
    search: "검색", searchRuns: "작업, 플러그인, 단계로 검색", status: "상태", all: "전체", live: "진행 중",
    waits: "대기 중", failedRuns: "실패", haveEnded: "종료", noRuns: "실행이 없습니다.", shown: "실행 {all}개 중 {shown}개",
    showMore: "더 보기", openJob: "작업", tasks: "태스크 {total}개 중 {done}개", failedTasks: "{count}개 실패",
    left: "{time} 남음", progressOf: "작업 {job}의 진행률", since: "{time} 경과", took: "{time} 걸림",
    waitsFor: "{what} 대기", error: "오류", step: "단계", stop: "중지", reallyStop: "지금 중지할까요?",
    stopSent: "중지 요청을 보냈습니다", timeline: "단계", noSteps: "알려진 단계가 없습니다.", timeUnknown: "시각을 알 수 없음",
    log: "로그", searchLog: "로그 검색", level: "수준", follow: "따라가기", wholeLog: "전체 로그 불러오기",
    lines: "{all}줄 중 {shown}줄", logEnded: "로그가 끝났습니다: {reason}.", noLines: "아직 로그가 없습니다.",
    failures: "실패한 태스크", task: "태스크", unknownRun: "작업 {job}의 실행이 없습니다.", progress: "진행률",
    backToRuns: "모든 실행", noWaiting: "대기 중인 실행이 없습니다.", until: "{time}까지", waitingRuns: "실행 {count}개",
    why: "이유", deployment: "배포", notDispatched: "아직 배포를 요청하지 않았습니다",
    dispatchedAs: "작업 {job}이(가) 배포 중", dispatchSent: "{time} 전에 배포를 요청했습니다",
    dispatchFailed: "배포 실패: {why}", name: "이름", route: "경로", replicas: "레플리카", agent: "에이전트",
    noDeployments: "배포가 없습니다.", noLetters: "배달 못 한 메시지가 없습니다.", reason: "이유", time: "시간", job: "작업",
    replay: "다시 보내기", reallyReplay: "다시 보낼까요?", replayed: "다시 보냈습니다", drop: "버리기", reallyDrop: "버릴까요?",
    dropped: "버렸습니다", lettersShown: "전체 {all}개 중 최근 {shown}개.", queue: "큐", waitingMessages: "대기",
    delayed: "지연", held: "워커가 메시지 {count}개를 갖고 있습니다.", workers: "워커", threads: "스레드",
    uptime: "가동 시간", noWorkers: "응답하는 워커가 없습니다.", noQueues: "이 브로커의 큐는 브로커에서 볼 수 있습니다.",
    loading: "불러오는 중 …", action: "액션", plugin: "플러그인", started: "시작", overall: "전체", labels: "라벨", noLabels: "아직 라벨이 없습니다.", wrongLabel: "{label}, 정답 {truth}",
    logExpired: "이 실행의 로그는 더 이상 보관되지 않습니다.",
    noEnded: "보관된 종료 실행이 없습니다.", endedShown: "전체 {all}개 중 최근 {shown}개.",
    errorExpired: "오류 내용은 더 이상 보관되지 않습니다", failuresShown: "실패한 태스크 {all}개 중 {shown}개를 표시합니다.",
    retry: "실패한 태스크 다시 실행", newJob: "다시 실행할 작업",
    retryHint: "백엔드에 새로 만든 작업의 번호입니다. 실패한 태스크만 다시 처리합니다.",
    retryRelease: "릴리스", sameRelease: "이 실행과 동일", skipAnnotated: "데이터가 있는 태스크 건너뛰기",
    priority: "우선순위", priorityHint: "우선순위는 0에서 9까지입니다. 기본값 0은 Redis에서는 가장 급하고, RabbitMQ에서는 가장 급하지 않습니다.",
    dryRun: "시험 실행: 할 일만 확인", retriedDry: "보냈습니다. 할 일을 결과로 보여 줄 작업:",
    retried: "보냈습니다. 다시 실행하는 작업:", retry_live: "아직 끝나지 않은 실행입니다.", retry_not_kept: "이 실행은 더 이상 보관되지 않습니다.",
    retry_no_tasks: "이 종류의 실행에는 태스크가 없습니다.", retry_none_failed: "이 실행에는 실패한 태스크가 없습니다.",
    retry_job_taken: "작업 {job}에는 이미 실행이 있습니다. 작업은 한 번만 실행되므로 새 작업을 쓰세요.",
    retry_invalid: "이 실행은 그렇게 다시 실행할 수 없습니다: {why}",
    PENDING: "준비", RUNNING: "실행 중", SUCCEEDED: "성공", FAILED: "실패", STOPPED: "중지됨",
  },
};

export const LANGUAGE_COOKIE = "synapse_console_language";
export const language = document.documentElement.lang === "ko" ? "ko" : "en";

/** The words of `key`, with `{name}` replaced by the value of that name. */
export function t(key, values = {}) {
  const words = WORDS[language][key] ?? key;
  return words.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** Whether there are words of `key`: another release of the server may know more. */
export function hasWords(key) {
  return key in WORDS[language];
}

/** The name of a status, or what another release calls it. */
export function statusName(status) {
  return WORDS[language][status] ?? status ?? "";
}

/** Seconds as a short text: `42 s`, `3 min 5 s`, `2 h 10 min`. */
export function duration(seconds) {
  const units = language === "ko" ? ["초", "분", "시간", "일"] : [" s", " min", " h", " d"];
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return `${whole}${units[0]}`;
  if (whole < 3600) return `${Math.floor(whole / 60)}${units[1]} ${whole % 60}${units[0]}`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}${units[2]} ${Math.floor((whole % 3600) / 60)}${units[1]}`;
  return `${Math.floor(whole / 86400)}${units[3]} ${Math.floor((whole % 86400) / 3600)}${units[2]}`;
}

const timeFormat = new Intl.DateTimeFormat(language, { timeStyle: "medium" });
const dateFormat = new Intl.DateTimeFormat(language, { dateStyle: "short", timeStyle: "medium" });

/** The time of day in the reader's zone; a text that is no time stays as it is. */
export function clockTime(value) {
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(date.getTime()) ? String(value) : timeFormat.format(date);
}

/** The same with the date. */
export function dateTime(value) {
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(date.getTime()) ? String(value) : dateFormat.format(date);
}
