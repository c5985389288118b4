# syntax=docker/dockerfile:1

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod \
    go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /batchtask ./cmd/batchtask

FROM gcr.io/distroless/static-debian13:nonroot
LABEL org.opencontainers.image.title="batchtask" \
      org.opencontainers.image.description="Runs batch tasks over a fleet of MQTT devices" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /batchtask /batchtask
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["/batchtask"]
CMD ["manager"]
