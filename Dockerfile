FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt pyproject.toml README.md ./
COPY shared shared
COPY worker worker
# requirements.txt pins; what a worker does not need of it stays out.
RUN pip install --no-cache-dir --constraint requirements.txt ".[worker]"
RUN useradd --create-home worker
USER worker
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "worker", "-Q", "deploy,to_task,annotate,logs,control", "--pool", "threads"]
