#!/bin/sh
# Makes Go stubs of the service below this directory. Needs Go and protoc (Debian:
# protobuf-compiler). In a module of yours, change go.mod's name here and in main.go.
set -eu
cd "$(dirname "$0")"
module=$(go list -m)
protos=../../../protos
files=$(cd "$protos" && find ./*/ -name '*.proto' | sed 's#^\./##')

# each proto file's package is its directory in this module, whatever its go_package says
packages=$(for file in $files; do
    for tool in go go-grpc; do printf ' --%s_opt=M%s=%s' "$tool" "$file" "$module/${file%/*}"; done
done)
go mod tidy -e 2>/dev/null # for the two tools
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
GOBIN=$tools go install tool
# shellcheck disable=SC2086
protoc -I "$protos" \
    --plugin=protoc-gen-go="$tools/protoc-gen-go" \
    --plugin=protoc-gen-go-grpc="$tools/protoc-gen-go-grpc" \
    --go_out=. --go_opt=module="$module" --go-grpc_out=. --go-grpc_opt=module="$module" \
    $packages $files
go mod tidy
