// One call with grpc-go, by the stubs that generate.sh makes: go run . [ADDRESS]
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	specgen "example.com/coordinator/specgen/v1"
	build "example.com/coordinator/tvix/build/protos"
)

func main() {
	address := "127.0.0.1:50051"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()

	options := `{"rootless": false, "terminal": false}`
	ctx := metadata.AppendToOutgoingContext(context.Background(), "specgen-options", options)
	spec, err := specgen.NewSpecServiceClient(connection).GenerateSpec(ctx, &build.BuildRequest{
		CommandArgs:  []string{"/bin/sh", "-c", "echo hello >/nix/store/out"},
		WorkingDir:   "build",
		ScratchPaths: []string{"build", "nix/store"},
		InputsDir:    "nix/store",
		Outputs:      []string{"nix/store/out"},
		Constraints:  &build.BuildRequest_BuildConstraints{System: "x86_64-linux", ProvideBinSh: true},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("config.json", []byte(spec.Json), 0o644); err != nil {
		log.Fatal(err)
	}
	for _, dir := range spec.ScratchDirs {
		fmt.Printf("make %s for %s\n", dir.BundlePath, dir.Path)
	}
	for _, output := range spec.OutputPaths {
		fmt.Printf("find %s at %s\n", output.Path, output.BundlePath)
	}
	for _, found := range spec.Diagnostics {
		fmt.Printf("%s: %s\n", found.Field, found.Message)
	}
}
