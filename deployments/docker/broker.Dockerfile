# syntax=docker/dockerfile:1
# kernex-broker. Build from the top of the repository:
#   docker build -f deployments/docker/broker.Dockerfile -t kernex-broker .

# The exact version of go.mod, so that the same source gives the same binary.
ARG GO_VERSION=1.26.5

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
COPY pkg/ pkg/
COPY broker/ broker/
ARG TARGETOS TARGETARCH TARGETVARIANT VERSION=dev
# Modules come into a cache that survives builds; only what this program
# imports is downloaded, checked against go.sum.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOARM=${TARGETVARIANT#v} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X github.com/kernexhq/kernex/pkg/buildinfo.Version=$VERSION" \
    -o /out/kernex-broker ./broker/cmd/kernex-broker

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="kernex-broker" \
      org.opencontainers.image.description="MQTT broker of Kernex" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/kernexhq/kernex" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/kernex-broker /kernex-broker
# No such user exists in the image, and none is needed. compose.yaml runs it as
# the owner of the secret files instead.
USER 65532:65532
# 8883: MQTT over TLS. 9100: /livez, /readyz, /metrics; not for the outside.
EXPOSE 8883 9100
# The program asks itself: the image has no shell and no curl.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/kernex-broker", "healthcheck"]
ENTRYPOINT ["/kernex-broker"]
