# A silo: trains with PyTorch, on the CPU unless TORCH_INDEX says otherwise. From the root of the repository:
#   docker build -f docker/silo.Dockerfile -t fedplat-silo .
#   docker build -f docker/silo.Dockerfile -t fedplat-silo:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG PYTHON_IMAGE=python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7
FROM ${PYTHON_IMAGE}

# For a build without the package index: a folder or an address of wheels, and PIP_NO_INDEX=1.
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PATH=/opt/fedplat/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
WORKDIR /src

# The dependencies are a layer of their own, the same in both images.
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv /opt/fedplat \
 && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    >requirements.txt \
 && pip install --requirement requirements.txt --constraint constraints.txt

# Then what only a silo has: the PyTorch of that index (PyPI's is the one for CUDA), and the rest.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --index-url "$TORCH_INDEX" --constraint constraints.txt torch \
 && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["silo"], sep="\n")' \
    >requirements.txt \
 && pip install --requirement requirements.txt --constraint constraints.txt

COPY . .
# With the bytecode of what it imports: it cannot write any when it runs.
RUN pip install --no-deps . \
 && python -P -c 'import fedplat_silo.app, fedplat_silo.trainer.worker, fedplat_silo.trainer.elastic, \
      fedplat_silo.trainer.dp, fedplat_silo.tasks.tabular, fedplat_silo.demo_data, fedplat_silo.reporting, \
      fedplat.report, opacus, pyarrow.parquet, dp_accounting.rdp, dp_accounting.pld.privacy_loss_distribution, scipy.optimize'

# Volumes take the owner of the folder that they are mounted on.
RUN useradd --uid 10001 --create-home fedplat \
 && install -d -o fedplat -g fedplat /data /handover /papers \
 && install -d -o fedplat -g fedplat -m 700 /var/lib/fedplat
ENV FEDPLAT_HOME=/var/lib/fedplat PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="fedplat silo" \
      org.opencontainers.image.description="Federated training: the process of one hospital" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /var/lib/fedplat
USER fedplat
# Connected to the server, as its process wrote down a moment ago.
HEALTHCHECK --interval=10s --timeout=8s --start-period=60s \
  CMD grep -q '"connected":true' /var/lib/fedplat/silos/*/status.json
ENTRYPOINT ["fedplat"]
CMD ["client", "--help"]
