# The project in a container.
#
#   docker build -t solopo .                     on NVIDIA's NeMo container, for GPUs
#   docker build --target cpu -t solopo:cpu .    on plain Python 3.11, for machines without
#   mkdir -p outputs
#   docker run --rm -v "$PWD/outputs:/opt/solopo_nemo/outputs" --user "$(id -u):$(id -g)" solopo:cpu python recipes/solo_dpo.py
#
# Pip's settings (an index of your own, with its password) come in as a secret and never reach a layer:
#   --secret id=pip.conf,src=$HOME/.config/pip/pip.conf

# NeMo 2.7, Megatron-core 0.16 and Transformer Engine 2.12: the last container in NVIDIA's version table that lists NeMo.
# 25.11.01 (NeMo 2.6, Megatron-core 0.15, Transformer Engine 2.9) is accepted too, without parallel.cp_comm_type=a2a. No
# registry could be reached where this file was tested, so that the target gpu has not been built.
ARG BASE_IMAGE=nvcr.io/nvidia/nemo:26.02
ARG CPU_BASE_IMAGE=python:3.11-slim-bookworm

FROM ${CPU_BASE_IMAGE} AS cpu
WORKDIR /opt/solopo_nemo
ARG PIP_NO_CACHE_DIR=1
# PyPI's torch brings gigabytes of CUDA
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# the requirements are a layer of their own: a change of the code does not install them again
COPY requirements/ requirements/
COPY pyproject.toml README.md LICENSE ./
COPY tools/setup.sh tools/
COPY solopo_nemo/__init__.py solopo_nemo/
COPY studies/pyproject.toml studies/__init__.py studies/
COPY studies/benchmarks/__init__.py studies/benchmarks/
COPY studies/collapse/__init__.py studies/collapse/
COPY studies/gpu_check/__init__.py studies/gpu_check/
COPY studies/reproduction/__init__.py studies/reproduction/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf tools/setup.sh
ENV PATH=/opt/solopo_nemo/.venv/bin:$PATH
COPY . .
# any user may write here: docker run --user, Kubernetes and Slurm bring their own
RUN useradd --no-log-init --create-home --uid 10000 solopo && install -d -m 1777 outputs
USER 10000:10000
ARG REVISION=unknown
LABEL org.opencontainers.image.title="solopo_nemo" \
    org.opencontainers.image.description="Short-to-Long Preference Optimization on NeMo and Megatron-core, CPU" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"
CMD ["python", "recipes/solo_dpo.py"]

FROM ${BASE_IMAGE} AS gpu
USER 0
WORKDIR /opt/solopo_nemo
ARG PIP_NO_CACHE_DIR=1
COPY requirements/ requirements/
COPY pyproject.toml README.md LICENSE ./
COPY tools/setup.sh tools/check_versions.py tools/
COPY solopo_nemo/__init__.py solopo_nemo/
COPY studies/pyproject.toml studies/__init__.py studies/
COPY studies/benchmarks/__init__.py studies/benchmarks/
COPY studies/collapse/__init__.py studies/collapse/
COPY studies/gpu_check/__init__.py studies/gpu_check/
COPY studies/reproduction/__init__.py studies/reproduction/
# torch, NeMo, Megatron-core, Transformer Engine, flash-attn and apex stay as the base brings them
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python tools/check_versions.py --gpu && PYTHON=python tools/setup.sh --system
COPY . .
RUN useradd --no-log-init --create-home --uid 10000 solopo && install -d -m 1777 outputs
USER 10000:10000
ARG REVISION=unknown
LABEL org.opencontainers.image.title="solopo_nemo" \
    org.opencontainers.image.description="Short-to-Long Preference Optimization on NeMo and Megatron-core, GPU" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"
CMD ["python", "recipes/solo_dpo.py"]
