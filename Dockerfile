FROM python:3.12-slim
WORKDIR /app
# Before the code, so that a change of code alone installs no dependency again.
COPY requirements/worker.txt requirements/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
RUN useradd --create-home worker
USER worker
STOPSIGNAL SIGTERM
# A worker that has lost its broker is healthy: it connects again by itself.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["synapse-worker", "live"]
CMD ["celery", "-A", "worker", "worker", "-Q", "deploy,to_task,annotate,logs,control", "--pool", "threads"]
