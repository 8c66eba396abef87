# The workers, the nodes of the Ray cluster and the monitor (`worker`, the default), and the sandbox's backend and agent.
# Packages go into Python's own prefix and not into a virtual environment: for each release with a requirements.txt Ray
# would copy that one whole, a gigabyte, where it makes a small one on top of the prefix.
# To name a digest as well: --build-arg PYTHON_IMAGE=python:3.12.12-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
# Before the code, so that a change of code alone installs no dependency again.
COPY requirements/bootstrap.txt requirements/worker.txt requirements/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/bootstrap.txt \
    && pip install --no-cache-dir --require-hashes --only-binary :all: --ignore-installed --prefix /installed \
        -r requirements/worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --no-deps --no-build-isolation --prefix /installed .

FROM build AS build-sandbox
COPY requirements/sandbox.txt requirements/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --ignore-installed --prefix /installed \
    -r requirements/sandbox.txt

FROM ${PYTHON_IMAGE} AS runtime
# A number, by which Kubernetes sees that it is not root; /data is what a volume of the sandbox begins with.
RUN groupadd --gid 10001 worker \
    && useradd --uid 10001 --gid 10001 --create-home worker \
    && install --directory --owner 10001 --group 10001 /data
WORKDIR /home/worker
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS sandbox
COPY --from=build-sandbox /installed /usr/local
CMD ["python", "-m", "worker.sandbox.backend"]

FROM runtime AS worker
COPY --from=build /installed /usr/local
# Of Flower, which reads it in its working folder.
COPY flowerconfig.py ./
# A worker that has lost its broker is healthy: it connects again by itself.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["synapse-worker", "live"]
CMD ["celery", "-A", "worker", "worker", "-Q", "deploy,to_task,annotate,logs,control", "--pool", "threads"]
