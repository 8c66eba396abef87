FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml README.md ./
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --no-deps .
RUN useradd --create-home worker
USER worker
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "worker", "-Q", "deploy,to_task,annotate,logs,control", "--pool", "threads"]
