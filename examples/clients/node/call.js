// One call with grpc-js, by the proto files as they are: node call.js [ADDRESS]
const fs = require('fs');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const protos = loader.loadSync('specgen/v1/specgen.proto', {
  includeDirs: [path.join(__dirname, '../../../protos')],
  keepCase: true, // field names as in the proto files
  arrays: true, // an empty list is one, and not undefined
});
const { SpecService } = grpc.loadPackageDefinition(protos).specgen.v1;
const client = new SpecService(process.argv[2] || '127.0.0.1:50051', grpc.credentials.createInsecure());

const request = {
  command_args: ['/bin/sh', '-c', 'echo hello >/nix/store/out'],
  working_dir: 'build',
  scratch_paths: ['build', 'nix/store'],
  inputs_dir: 'nix/store',
  outputs: ['nix/store/out'],
  constraints: { system: 'x86_64-linux', provide_bin_sh: true },
};
const metadata = new grpc.Metadata();
metadata.set('specgen-options', JSON.stringify({ rootless: false, terminal: false }));

client.GenerateSpec(request, metadata, (error, spec) => {
  if (error) throw error;
  fs.writeFileSync('config.json', spec.json);
  for (const dir of spec.scratch_dirs) console.log(`make ${dir.bundle_path} for ${dir.path}`);
  for (const output of spec.output_paths) console.log(`find ${output.path} at ${output.bundle_path}`);
  for (const found of spec.diagnostics) console.log(`${found.field}: ${found.message}`);
});
