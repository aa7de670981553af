# docker build -t hf-cifar . && docker run --gpus all -v "$PWD/runs:/home/user/runs" hf-cifar train quickstart
FROM python:3.12-slim
RUN useradd --create-home user
WORKDIR /src
COPY . .
RUN python -m pip install --no-cache-dir ".[quickstart]" && rm -rf /src
USER user
WORKDIR /home/user
ENTRYPOINT ["hf-cifar"]
CMD ["--help"]
