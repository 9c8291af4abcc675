# syntax=docker/dockerfile:1
# kernex-agent in a container: for trying a fleet out, and for gateways whose
# bundles live in the container. Build from the top of the repository:
#   docker build -f deployments/docker/agent.Dockerfile -t kernex-agent .

# The exact version of go.mod, so that the same source gives the same binary.
ARG GO_VERSION=1.26.5

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
COPY pkg/ pkg/
COPY agent/ agent/
ARG TARGETOS TARGETARCH TARGETVARIANT VERSION=dev
# Modules come into a cache that survives builds; only what this program
# imports is downloaded, checked against go.sum. The state folder is made here
# because the last stage runs nothing: a build for another architecture needs no
# emulation.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    mkdir -p /out/state && \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOARM=${TARGETVARIANT#v} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X github.com/kernexhq/kernex/pkg/buildinfo.Version=$VERSION" \
    -o /out/kernex-agent ./agent/cmd/kernex-agent

# Not scratch: deploy, health and rollback scripts of bundles are shell scripts
# that call ordinary commands, and bundles may bring programs linked against
# glibc. Debian has a shell, coreutils and glibc; Alpine or busybox would break
# the latter.
FROM debian:trixie-slim
ARG VERSION=dev
LABEL org.opencontainers.image.title="kernex-agent" \
      org.opencontainers.image.description="Device agent of Kernex" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/kernexhq/kernex" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/kernex-agent /usr/local/bin/kernex-agent
# A volume that is new takes its owner from here.
COPY --from=build --chown=65532:65532 /out/state /var/lib/kernex-agent
# Without root the agent cannot give each script a process namespace; the
# container bounds what a script leaves behind. To have namespaces as well:
# docker run --user 0 --cap-add SYS_ADMIN, which is close to root on the host.
USER 65532:65532
ENV KERNEX_STATE=/var/lib/kernex-agent
VOLUME /var/lib/kernex-agent
# The agent listens on nothing; the orchestrator sees whether it is well.
ENTRYPOINT ["/usr/local/bin/kernex-agent"]
