# syntax=docker/dockerfile:1
# Three images with a common base: `serve` is the scoring service, `train` runs every other command,
# `mlflow` is the MLflow server. Packages are installed as pyproject.toml lists them, at the versions
# in constraints.txt. To use another package index, pass a pip configuration with
# --secret id=pip,src=pip.conf.
ARG PYTHON=3.11.14-slim-bookworm

# OMP_NUM_THREADS: numpy would start one thread per core of the machine, regardless of the limits of
# the container, and could exceed its limit of processes.
FROM python:${PYTHON} AS base
ENV HOME=/tmp \
    OMP_NUM_THREADS=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true

# ---------------------------------------------------------------- build stages

FROM base AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/pip \
    python -m pip --cache-dir /var/cache/pip install --constraint constraints.txt hatchling
COPY anomaly_vae anomaly_vae
COPY pipelines pipelines
COPY serving serving
COPY configs configs
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && python -m venv --without-pip /opt/anomaly-vae

FROM build AS build-serve
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/pip \
    python -m pip --python /opt/anomaly-vae --cache-dir /var/cache/pip install \
      --constraint constraints.txt "$(echo /dist/*.whl)[serve,images,registry,redis,review]"

FROM build AS build-train
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/pip \
    python -m pip --python /opt/anomaly-vae --cache-dir /var/cache/pip install \
      --constraint constraints.txt "$(echo /dist/*.whl)[train,images,review]"

FROM build AS build-mlflow
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/var/cache/pip \
    python -m pip --python /opt/anomaly-vae --cache-dir /var/cache/pip install \
      --constraint constraints.txt "$(echo /dist/*.whl)[server]"

# ---------------------------------------------------------------- images

# Mount points of volumes: a new volume takes over their owner.
FROM base AS run
RUN python -m pip uninstall --yes pip setuptools wheel \
 && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin anomaly-vae \
 && install --directory --owner anomaly-vae --group anomaly-vae \
      /work /var/cache/anomaly-vae /var/lib/mlflow
ENV PATH=/opt/anomaly-vae/bin:$PATH
USER 10001:10001
WORKDIR /work

FROM run AS mlflow
COPY --from=build-mlflow /opt/anomaly-vae /opt/anomaly-vae
EXPOSE 5000
CMD ["mlflow", "server", "--help"]

FROM run AS train
COPY --from=build-train /opt/anomaly-vae /opt/anomaly-vae
ENTRYPOINT ["anomaly-vae"]
CMD ["--help"]

FROM run AS serve
ENV ANOMALY_VAE_CACHE_DIR=/var/cache/anomaly-vae
COPY --from=build-serve /opt/anomaly-vae /opt/anomaly-vae
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=360s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["anomaly-vae"]
CMD ["serve", "--help"]
