# The image of the Maintenance Agent: an interpreter, the agent with its locked dependencies, and nothing that could
# build or install anything.
#
#     docker build --tag maintenance-agent .
#
# BASE is any Debian 12 or newer, or an image with Python 3.11 or newer of its own. Pin it by digest where builds have to
# be repeatable (--build-arg BASE=debian@sha256:...). Where pip has to trust another authority or ask another index, hand
# it over as a secret, which stays out of every layer:
#
#     docker build --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt --secret id=pip,src=pip.conf .

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build

# Debian removes a version from its archive with the next security update: a build that pins one soon fails.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Two environments: one with pip and the tools that make the wheel, which stays here, and one without, which goes on.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/agent

WORKDIR /source
COPY requirements.lock requirements-demo.lock ./

# What makes the wheel is locked too, in the file of the development installs; from it only these are taken. One that is
# missing here fails the build, since pip then finds a requirement without a hash.
RUN awk '/^[a-z]/ {wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} wanted' \
      requirements-demo.lock > build.lock

RUN --mount=type=secret,id=ca --mount=type=secret,id=pip,target=/etc/pip.conf \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
    && export PIP_DISABLE_PIP_VERSION_CHECK=1 \
    && /build/bin/pip install --no-cache-dir --require-hashes --requirement build.lock \
    && /build/bin/pip --python /opt/agent install --no-cache-dir --require-hashes --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY agent ./agent
RUN /build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/agent install --no-cache-dir --no-index --no-deps /wheels/*.whl


FROM ${BASE}

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown

LABEL org.opencontainers.image.title="Maintenance Agent" \
      org.opencontainers.image.description="Keeps MongoDB records, directories on a volume and Kubernetes workloads in step." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

# The certificates are for MongoDB and clusters over TLS. No program keeps its set-user-id bit: the agent needs none.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

COPY --from=build /opt/agent /opt/agent

# Compiled files came with the installation, and the root file system may be read-only.
ENV PATH=/opt/agent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

USER 10001:10001
EXPOSE 9190
STOPSIGNAL SIGTERM

# Asks only whether the event loop turns: a MongoDB that is away is no reason to restart the agent. It follows the port of
# the environment; where the configuration file says another one, or TLS, give a check of your own (Kubernetes has its
# probes and ignores this one).
HEALTHCHECK --interval=30s --timeout=4s --start-period=20s --retries=3 CMD ["python3", "-c", "\
import http.client, os, sys; \
agent = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('MAINTENANCE_HTTP__PORT') or 9190), timeout=3); \
agent.request('GET', '/livez'); \
sys.exit(agent.getresponse().status != 200)"]

ENTRYPOINT ["maintenance-agent"]
CMD ["serve"]
