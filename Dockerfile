# specgen-server in an image: docker build -t specgen .
# deploy/build-image.sh does it with buildah, and without a registry too.
FROM docker.io/library/debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip python3-venv
WORKDIR /src
COPY . .
# EXTRAS=otel adds tracing.
ARG EXTRAS=server
# Secrets of these names, where there are such, say which package index to use, and whom to trust.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv --without-pip /opt/specgen \
    && python3 -m pip --python /opt/specgen/bin/python install --no-cache-dir ".[${EXTRAS}]"
RUN deploy/image-root.sh /image

# The interpreter, the packages and their libraries: no shell, no package manager.
FROM scratch
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tvix-specgen" \
      org.opencontainers.image.description="Turns a tvix BuildRequest into an OCI runtime spec, over gRPC" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="GPL-3.0-only AND MIT"
COPY --from=build /image /
# It writes no file, so the root file system may be read-only.
ENV PATH=/opt/specgen/bin:/usr/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    SPECGEN_LISTEN=0.0.0.0:50051
USER 65532:65532
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
    CMD ["specgen", "health", "--server", "127.0.0.1:50051", "--timeout", "4"]
ENTRYPOINT ["specgen-server"]
