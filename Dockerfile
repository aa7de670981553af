# docker build -t hf-cifar .
# docker run --gpus all -v "$PWD/runs:/home/user/runs" hf-cifar train quickstart
FROM python:3.12-slim
# Triton, which torch.compile uses on a GPU, needs a C compiler when it runs.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home user
WORKDIR /src
COPY . .
RUN python -m pip install --no-cache-dir ".[quickstart]" && rm -rf /src
USER user
WORKDIR /home/user
ENTRYPOINT ["hf-cifar"]
CMD ["--help"]
