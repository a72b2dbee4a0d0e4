// Networks of npm packages: node peers.cjs FOLDER_OF_node_modules face_api|human|faces_ssd|faces_tiny
// for peers.py (AgeGenderNet and FaceRes) and face_finders.py (face-api's two detectors, whose answers are lists of boxes).
// On stdin photos, each as height and width (two little-endian 32-bit numbers) and its RGB bytes; on stdout a line of
// JSON when ready, and one for each photo: {"answer": {"gender": "male", "age": 34.2}, "seconds": 0.01}, where seconds
// are those of the processor.
const fs = require('fs');
const { createRequire } = require('module');
const path = require('path');

console.log = console.error; // stdout carries answers only
const home = path.resolve(process.argv[2]);
const task = process.argv[3];
const peer = createRequire(path.join(home, 'here.js'));
const tf = peer('@tensorflow/tfjs');
const wasm = peer('@tensorflow/tfjs-backend-wasm');
const networks = { faces_ssd: 'ssdMobilenetv1', faces_tiny: 'tinyFaceDetector', face_api: 'ageGenderNet' };
let faceapi;
let faceres;

const answer = (content) => fs.writeSync(1, `${JSON.stringify(content)}\n`);
const version = (name) => JSON.parse(fs.readFileSync(path.join(home, 'node_modules', name, 'package.json'))).version;

function read(length) {
  const bytes = Buffer.alloc(length);
  for (let got = 0, more; got < length; got += more) {
    more = fs.readSync(0, bytes, got, length - got);
    if (!more) process.exit(0); // no more photos
  }
  return bytes;
}

// As src/face/faceres.ts of @vladmandic/human prepares a face and reads the answers.
async function loadFaceres() {
  const json = JSON.parse(fs.readFileSync(path.join(home, 'node_modules/@vladmandic/human/models/faceres.json')));
  const bytes = fs.readFileSync(path.join(home, 'node_modules/@vladmandic/human/models', json.weightsManifest[0].paths[0]));
  return tf.loadGraphModel({
    load: async () => ({
      modelTopology: json.modelTopology,
      signature: json.signature,
      weightSpecs: json.weightsManifest[0].weights,
      weightData: new Uint8Array(bytes).buffer,
    }),
  });
}

function askFaceres(photo) {
  const [gender, years] = tf.tidy(() => {
    const found = faceres.execute(tf.image.resizeBilinear(photo.expandDims(0).toFloat(), [224, 224]));
    return [1, 100].map((length) => found.find((one) => one.shape[1] === length).dataSync());
  });
  const top = years.indexOf(Math.max(...years));
  const [below, above] = [years[top - 1] || 0, years[top + 1] || 0];
  return { gender: gender[0] <= 0.5 ? 'female' : 'male', age: top + (below > above ? -10 * below : 10 * above) };
}

async function predict(pixels, height, width) {
  const photo = tf.tensor3d(pixels, [height, width, 3], 'int32');
  if (task.startsWith('faces_')) {
    const options = task === 'faces_ssd' ? new faceapi.SsdMobilenetv1Options() : new faceapi.TinyFaceDetectorOptions();
    const found = await faceapi.detectAllFaces(photo, options);
    photo.dispose();
    return found.map(({ box }) => [box.left, box.top, box.right, box.bottom]);
  }
  const said = faceres ? askFaceres(photo) : await faceapi.nets.ageGenderNet.predictAgeAndGender(photo);
  photo.dispose();
  return { gender: said.gender, age: said.age };
}

async function main() {
  tf.env().set('WASM_HAS_MULTITHREAD_SUPPORT', false); // one thread, as the others
  wasm.setWasmPaths(path.join(home, 'node_modules/@tensorflow/tfjs-backend-wasm/dist/'));
  if (!(await tf.setBackend('wasm'))) throw new Error('no WASM backend');
  if (task === 'human') {
    faceres = await loadFaceres();
  } else {
    faceapi = peer('@vladmandic/face-api/dist/face-api.node-wasm.js');
    await faceapi.nets[networks[task]].loadFromDisk(path.join(home, 'node_modules/@vladmandic/face-api/model'));
  }
  for (let i = 0; i < 20; i += 1) await predict(new Uint8Array(128 * 128 * 3), 128, 128); // the compiler warms up
  const packages = [faceres ? '@vladmandic/human' : '@vladmandic/face-api'];
  packages.push('@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm');
  answer({ node: process.versions.node, ...Object.fromEntries(packages.map((name) => [name, version(name)])) });
  for (;;) {
    const size = read(8);
    const [height, width] = [size.readUInt32LE(0), size.readUInt32LE(4)];
    const pixels = new Uint8Array(read(height * width * 3));
    const started = process.cpuUsage();
    let said = null;
    let error;
    try {
      said = await predict(pixels, height, width);
    } catch (reason) {
      error = String(reason);
    }
    const { user, system } = process.cpuUsage(started);
    answer({ answer: said, seconds: (user + system) / 1e6, error });
  }
}

main().catch((reason) => {
  console.error(String(reason));
  process.exit(1);
});
