# syntax=docker/dockerfile:1.7
# unetpp on CPUs, and the MLflow server. Build from the repository root:
#   docker build -f cluster/docker/cpu.Dockerfile -t registry.example.com/unetpp:0.1.0-cpu .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/unetpp
ENV PATH=/opt/unetpp/bin:$PATH
# The lock first: a change of our own code then reuses this layer, which is by far the largest.
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY unetpp unetpp
COPY kernels kernels
COPY workflows workflows
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt ".[server,cluster]"

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin unetpp
COPY --from=build /opt/unetpp /opt/unetpp
ENV PATH=/opt/unetpp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    UNETPP_HOME=/home/unetpp/.unetpp \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 10001:10001
WORKDIR /home/unetpp
# What starts a server overrides this; for a job it says that the installation answers.
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s CMD ["python", "-c", "import unetpp_workflows.cli"]
ENTRYPOINT ["unetpp"]
CMD ["--help"]
