# syntax=docker/dockerfile:1.7
# unetpp on NVIDIA GPUs; CUDA's libraries come with torch, the driver from the host. Build from the repository root:
#   docker build -f cluster/docker/cuda.Dockerfile -t registry.example.com/unetpp:0.1.0-cuda .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/unetpp
ENV PATH=/opt/unetpp/bin:$PATH
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt torch triton
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY unetpp unetpp
COPY kernels kernels
COPY workflows workflows
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt ".[cluster]"

FROM python:3.11.14-slim-bookworm
# Triton compiles its launchers with the machine's C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin unetpp
COPY --from=build /opt/unetpp /opt/unetpp
ENV PATH=/opt/unetpp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/home/unetpp/.triton \
    UNETPP_HOME=/home/unetpp/.unetpp \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 10001:10001
WORKDIR /home/unetpp
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["python", "-c", "import torch; torch.cuda.init()"]
ENTRYPOINT ["unetpp"]
CMD ["--help"]
