# `quietstar serve` on CPUs, for a model in a folder:
#   docker build -t quietstar --build-arg TORCH_INDEX=URL .
#   docker run --rm -p 8000:8000 -v "$PWD/runs/mine:/model:ro" quietstar
# TORCH_INDEX is the address of PyTorch's index of CPU wheels (see pytorch.org); without it, pip takes the default ones, which bring
# CUDA's libraries, gigabytes of them. Options of `quietstar serve` follow the image's name; --host stays 0.0.0.0 inside.
FROM python:3.12-slim AS build

ARG TORCH_INDEX=""
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/quietstar \
    && /opt/quietstar/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[serve,gguf,lora]"

FROM python:3.12-slim

RUN useradd --create-home --uid 10001 quietstar
COPY --from=build /opt/quietstar /opt/quietstar
ENV PATH=/opt/quietstar/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/quietstar
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["quietstar", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
