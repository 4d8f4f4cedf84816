# The server, without PyTorch. From the root of the repository:
#   docker build -f docker/server.Dockerfile -t fedplat-server .
ARG PYTHON_IMAGE=python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7
FROM ${PYTHON_IMAGE} AS build

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

COPY . .
# Then without what no server runs: installers, tests, symbols; and with the bytecode of what it imports, no more.
RUN pip install --no-deps . \
 && { command -v strip || { apt-get update && apt-get install --yes --no-install-recommends binutils; }; } \
 && pip uninstall --yes setuptools && pip uninstall --yes pip && rm -f /opt/fedplat/bin/uv /opt/fedplat/bin/uvx \
 && find /opt/fedplat -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -r {} + \
 && find /opt/fedplat -name '*.so' ! -path '*.libs/*' -exec strip --strip-unneeded {} + \
 && python -P -c 'import fedplat_server.app, fedplat_server.backup, fedplat_server.console, fedplat_server.export, \
      sqlalchemy.dialects.postgresql.psycopg, psycopg, fedplat.report, fedplat.privacy, \
      dp_accounting.rdp, dp_accounting.pld.privacy_loss_distribution, scipy.optimize'

FROM ${PYTHON_IMAGE}
# Volumes take the owner of the folder that they are mounted on.
RUN useradd --uid 10001 --create-home fedplat \
 && install -d -o fedplat -g fedplat /handover /papers /run/secrets \
 && install -d -o fedplat -g fedplat -m 700 /var/lib/fedplat
COPY --from=build /opt/fedplat /opt/fedplat
ENV PATH=/opt/fedplat/bin:$PATH FEDPLAT_HOME=/var/lib/fedplat PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="fedplat server" \
      org.opencontainers.image.description="Federated training: the aggregation server" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /var/lib/fedplat
USER fedplat
EXPOSE 8443
# It answers its administrator, and its database answers it.
HEALTHCHECK --interval=10s --timeout=8s --start-period=60s CMD ["fedplat", "silo", "list"]
ENTRYPOINT ["fedplat"]
CMD ["server", "start"]
