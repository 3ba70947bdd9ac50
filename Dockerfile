# Belljar as a container image: deploy/README.md says how to run it. Any base with Debian's packages and Python 3.11 or
# later will do. `make image` builds it with Docker, Podman or Buildah.
ARG BASE=debian:trixie-slim

# What is needed to serve: both stages stand on it, so that the interpreter is the same.
FROM ${BASE} AS system
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        ca-certificates libnftables1 python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log

# What is needed to build, and then: the server, runsc and the images of the runtimes.
FROM system AS build
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        debian-archive-keyring erofs-utils mmdebstrap python3-venv
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements requirements
RUN python3 -m venv /opt/belljar /tmp/tools \
    && /tmp/tools/bin/pip install -q --require-hashes --only-binary :all: -r requirements/build.txt \
    && /tmp/tools/bin/pip --python /opt/belljar/bin/python install -q --require-hashes --only-binary :all: \
        -r requirements/server.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY proto proto
COPY client client
COPY server server
RUN /tmp/tools/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/belljar/bin/pip install -q --no-deps /tmp/wheel/*.whl
# The builder can lend what another set-up made, in /lent/bin and /lent/cache; what does not fit is made anew.
RUN mkdir -p /usr/lib/belljar && if [ -d /lent ]; then cp -r /lent/* /usr/lib/belljar/; fi \
    && BELLJAR_SETUP_DIR=/usr/lib/belljar /opt/belljar/bin/belljar setup --build-only \
    && rm -rf /usr/lib/belljar/cache/* /usr/lib/belljar/tmp /usr/lib/belljar/setup.lock
RUN /opt/belljar/bin/python -m pip uninstall -q -y pip

FROM system
# It listens where published ports reach it, and refuses to start until the settings say that this is meant.
ENV PATH=/opt/belljar/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    BELLJAR_SETUP_DIR=/usr/lib/belljar \
    BELLJAR_GRPC__LISTEN=0.0.0.0:50051 \
    BELLJAR_HTTP__LISTEN=0.0.0.0:8080
VOLUME /var/lib/belljar
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
# The first start makes the snapshots for this machine's CPU.
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s CMD ["belljar", "health"]
# tini buries what a killed sandbox leaves: the server is not made to be process 1.
ENTRYPOINT ["tini", "--", "belljar"]
CMD ["serve"]
# The large ones come late: some storage drivers copy everything for each step after them.
COPY --from=build /usr/lib/belljar /usr/lib/belljar
COPY --from=build /opt/belljar /opt/belljar
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Belljar" \
    org.opencontainers.image.description="Runs untrusted Python, JavaScript and TypeScript in gVisor, behind one gRPC call" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
