# vggt-int8 on NVIDIA GPUs of compute capability 8.0 or newer. From the root of a checkout:
#   docker build -f deploy/cuda.Dockerfile -t vggt-int8:cuda .
#   docker run --rm --gpus all -v models:/models -v "$PWD:/work" vggt-int8:cuda run facebook/VGGT-1B photos -o scene
# PyTorch's wheels bring CUDA's libraries; the base says which driver is needed, and is small.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS build
ARG TORCH_INDEX=""
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN VENV=/opt/vggt-int8 /src/deploy/install.sh

FROM nvidia/cuda:13.0.2-base-ubuntu24.04
# Triton compiles a launcher for each kernel: with a C compiler, and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 vggt \
    && mkdir /models /work \
    && chown vggt /models /work
COPY --from=build /opt/vggt-int8 /opt/vggt-int8
ENV PATH=/opt/vggt-int8/bin:$PATH HF_HOME=/models/huggingface XDG_CACHE_HOME=/models/cache \
    TRITON_CACHE_DIR=/models/triton
USER 1001
WORKDIR /work
VOLUME /models
HEALTHCHECK --interval=5m --timeout=2m CMD ["vggt-int8", "doctor", "--skip-run", "--quiet"]
ENTRYPOINT ["vggt-int8"]
CMD ["--help"]
