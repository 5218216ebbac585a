# On the CPU:  docker build --tag gptjax .
# NVIDIA:      docker build --tag gptjax --build-arg EXTRA=cuda12 .     (cuda13 for CUDA 13)
# Use:         docker run --rm -it --gpus all --volume "$PWD:/work" gptjax train quickstart
#
# CUDA is in Python's packages: the host has the driver and NVIDIA's container toolkit.
FROM python:3.12-slim-bookworm

ARG EXTRA=cpu
WORKDIR /opt/gptjax

# The locked packages are a layer of their own: it stays while only the sources change.
COPY requirements/ requirements/
RUN pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements/${EXTRA}.txt

COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs/ configs/
COPY data_pipeline/ data_pipeline/
COPY gptjax/ gptjax/
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Data, runs and compiled programs are in the folder that is mounted here.
WORKDIR /work
ENTRYPOINT ["gptjax"]
CMD ["--help"]
