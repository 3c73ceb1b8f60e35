# vggt-int8 on CPUs. From the root of a checkout, with the address of PyTorch's CPU builds (else its CUDA build comes):
#   docker build -f deploy/cpu.Dockerfile --build-arg TORCH_INDEX=ADDRESS -t vggt-int8:cpu .
#   docker run --rm -v models:/models -v "$PWD:/work" vggt-int8:cpu run embedded photos -o scene
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=""
COPY . /src
RUN VENV=/opt/vggt-int8 PYTHON=/usr/local/bin/python3 /src/deploy/install.sh

FROM python:3.12-slim-bookworm
# The CPU kernels are compiled where they run. Debian's patch releases of a compiler may come.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 vggt \
    && mkdir /models /work \
    && chown vggt /models /work
COPY --from=build /opt/vggt-int8 /opt/vggt-int8
ENV PATH=/opt/vggt-int8/bin:$PATH HF_HOME=/models/huggingface XDG_CACHE_HOME=/models/cache
USER 1000
WORKDIR /work
VOLUME /models
HEALTHCHECK --interval=5m --timeout=2m CMD ["vggt-int8", "doctor", "--skip-run", "--quiet"]
ENTRYPOINT ["vggt-int8"]
CMD ["--help"]
