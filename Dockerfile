# An image for a cluster: hekaton with all of its plugins and models.
#
#   docker build --tag registry.example.org/hekaton:0.1.0 .
#
# torch brings CUDA's libraries; of the base it takes what the driver needs. Triton compiles with gcc.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /opt/hekaton
COPY requirements.txt ./
RUN pip install --no-cache-dir "$(grep '^torch==' requirements.txt)"
COPY core core
COPY model_zoo model_zoo
COPY plugins plugins
RUN pip install --no-cache-dir -r requirements.txt

WORKDIR /workspace
CMD ["hekaton", "--help"]
