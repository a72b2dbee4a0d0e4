// Networks of @vladmandic/face-api: node peers.cjs FOLDER_OF_node_modules gender|age|faces_ssd|faces_tiny
// for peers.py (AgeGenderNet) and face_finders.py (its two detectors, whose answers are lists of boxes).
// On stdin photos, each as height and width (two little-endian 32-bit numbers) and its RGB bytes;
// on stdout a line of JSON when ready, and one for each photo: {"answer": "male", "seconds": 0.01}.
const fs = require('fs');
const { createRequire } = require('module');
const path = require('path');

console.log = console.error; // stdout carries answers only
const home = path.resolve(process.argv[2]);
const task = process.argv[3];
const peer = createRequire(path.join(home, 'here.js'));
const tf = peer('@tensorflow/tfjs');
const wasm = peer('@tensorflow/tfjs-backend-wasm');
const faceapi = peer('@vladmandic/face-api/dist/face-api.node-wasm.js');

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

async function predict(pixels, height, width) {
  const photo = tf.tensor3d(pixels, [height, width, 3], 'int32');
  if (task.startsWith('faces_')) {
    const options = task === 'faces_ssd' ? new faceapi.SsdMobilenetv1Options() : new faceapi.TinyFaceDetectorOptions();
    const found = await faceapi.detectAllFaces(photo, options);
    photo.dispose();
    return found.map(({ box }) => [box.left, box.top, box.right, box.bottom]);
  }
  const both = await faceapi.nets.ageGenderNet.predictAgeAndGender(photo);
  photo.dispose();
  return both[task];
}

async function main() {
  tf.env().set('WASM_HAS_MULTITHREAD_SUPPORT', false); // one thread, as the others
  wasm.setWasmPaths(path.join(home, 'node_modules/@tensorflow/tfjs-backend-wasm/dist/'));
  if (!(await tf.setBackend('wasm'))) throw new Error('no WASM backend');
  const network = { faces_ssd: 'ssdMobilenetv1', faces_tiny: 'tinyFaceDetector' }[task] || 'ageGenderNet';
  await faceapi.nets[network].loadFromDisk(path.join(home, 'node_modules/@vladmandic/face-api/model'));
  for (let i = 0; i < 20; i += 1) await predict(new Uint8Array(128 * 128 * 3), 128, 128); // the compiler warms up
  const packages = ['@vladmandic/face-api', '@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm'];
  answer({ node: process.versions.node, ...Object.fromEntries(packages.map((name) => [name, version(name)])) });
  for (;;) {
    const size = read(8);
    const [height, width] = [size.readUInt32LE(0), size.readUInt32LE(4)];
    const pixels = new Uint8Array(read(height * width * 3));
    const started = process.hrtime.bigint();
    let said = null;
    let error;
    try {
      said = await predict(pixels, height, width);
    } catch (reason) {
      error = String(reason);
    }
    answer({ answer: said, seconds: Number(process.hrtime.bigint() - started) / 1e9, error });
  }
}

main().catch((reason) => {
  console.error(String(reason));
  process.exit(1);
});
