"""Cartoon faces, drawn: `draw_face` makes one of a given gender, age, skin tone and kind of glasses.

Needs numpy and Pillow. `faces.research.demo` makes labelled sets of them.
"""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

GENDERS = ("female", "male")
GLASSES = ("round", "square", "sun", "funny")
SUPERSAMPLING = 3
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

# fmt: off
# Skin tone, UTKFace race code, FairFace race. The last two only fill their columns, and mean no more.
SKINS = (
    ((255, 226, 205), 0, "White"), ((250, 212, 184), 0, "White"), ((244, 203, 168), 2, "East Asian"),
    ((236, 190, 152), 4, "Middle Eastern"), ((226, 175, 136), 2, "Southeast Asian"),
    ((212, 158, 118), 4, "Latino_Hispanic"), ((188, 134, 96), 3, "Indian"), ((160, 108, 76), 3, "Indian"),
    ((128, 84, 60), 1, "Black"), ((98, 64, 48), 1, "Black"),
)
HAIR_COLOURS = ((36, 28, 28), (58, 40, 32), (88, 58, 40), (122, 80, 48), (164, 84, 44), (200, 152, 84),
                (232, 200, 136))
IRISES = ((92, 60, 40), (70, 46, 34), (84, 122, 76), (72, 116, 160), (110, 122, 134), (134, 96, 52))
CLOTHES = ((204, 78, 74), (62, 98, 148), (76, 132, 106), (236, 186, 88), (110, 84, 140), (58, 62, 74),
           (228, 226, 220), (222, 138, 150), (92, 160, 178), (150, 110, 84))
RIMS = {"sun": ((24, 22, 26), (70, 40, 30)),
        "funny": ((232, 60, 120), (250, 170, 40), (70, 190, 90), (110, 90, 230))}
PLAIN_RIMS = ((30, 28, 32), (96, 54, 34), (150, 150, 158), (150, 32, 44), (40, 60, 110))

STYLES = ("long", "bob", "bun", "curls", "short", "crop", "receding", "bald", "wisp")
STYLE_SHARES = {"female": (0.37, 0.22, 0.14, 0.14, 0.10, 0.03, 0, 0, 0),
                "male": (0.06, 0.03, 0.02, 0.07, 0.49, 0.33, 0, 0, 0)}
# Hairlines from the right temple to the middle, in half-widths and half-heights of the head.
HAIRLINES = {
    "fringe": ((1.0, -0.05), (0.86, -0.36), (0.42, -0.40), (0, -0.36)),
    "parted": ((1.0, 0.02), (0.88, -0.34), (0.50, -0.60), (0, -0.86)),
    "up": ((1.0, -0.08), (0.90, -0.46), (0.50, -0.66), (0, -0.70)),
    "receding": ((1.0, -0.08), (0.94, -0.40), (0.60, -0.86), (0, -0.72)),
}
# fmt: on


def _mix(a, b, share):
    """Colour between `a` (share 0) and `b` (share 1)."""
    return tuple(int(x + (y - x) * min(max(share, 0), 1)) for x, y in zip(a, b, strict=True))


def _both(right):
    """Line through the right half's points and on through their mirror images, (M, 2)."""
    right = np.asarray(right, float)
    left = right[::-1] * (-1, 1)
    return np.concatenate([right, left[int(right[-1, 0] == 0) :]])  # a point on the middle line counts once


@cache
def _circle(start, stop, n):
    a = np.radians(np.linspace(start, stop, n))
    return np.stack([np.cos(a), np.sin(a)], 1)


def _smooth(points, closed=False, steps=7):
    """Catmull-Rom curve through `points` (N, 2), as (M, 2)."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    t = np.arange(steps)[:, None] / steps
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


class _Pen:
    """Draws in face units: the image spans -1 to 1, y points down; the pose moves everything."""

    def __init__(self, image, turn=0.0, scale=1.0, shift=(0.0, 0.0)):
        self.draw = ImageDraw.Draw(image, "RGBA")  # RGBA on an RGB image blends by alpha
        half, cos, sin = image.width / 2, math.cos(turn) * scale, math.sin(turn) * scale
        self.matrix = np.array([[cos, sin], [-sin, cos]]) * half
        self.origin = half * (1 + np.asarray(shift))

    def shape(self, points, fill, alpha=255):
        self.draw.polygon((points @ self.matrix + self.origin).ravel().tolist(), fill=(*fill, int(alpha)))

    def blob(self, points, fill, alpha=255):
        self.shape(_smooth(points, closed=True), fill, alpha)

    def ellipse(self, x, y, rx, ry, fill, alpha=255, start=0, stop=360):
        self.shape(_circle(start, stop, 28) * (rx, ry) + (x, y), fill, alpha)

    def glow(self, x, y, rx, ry, fill, alpha):
        for step in (1.0, 0.75, 0.5):  # a soft spot without the price of a blur
            self.ellipse(x, y, rx * step, ry * step, fill, alpha / 3)

    def stroke(self, points, width, fill, alpha=255, ends=0.15):
        """A brush stroke through `points` that thins to the share `ends` of its width."""
        line = _smooth(points)
        along = np.empty_like(line)
        along[1:-1], along[0], along[-1] = line[2:] - line[:-2], line[1] - line[0], line[-1] - line[-2]
        thick = ends + (1 - ends) * _circle(0, 180, len(line))[:, 1:]
        across = along[:, ::-1] * (width / 2, -width / 2) * thick / (np.hypot(*along.T)[:, None] + 1e-9)
        self.shape(np.concatenate([line + across, (line - across)[::-1]]), fill, alpha)


def _look(rng, gender, age, skin):
    """All traits of one person. `manly` leads the soft cues and overlaps between the genders."""
    child, adult, old = np.clip([(13 - age) / 12, (age - 10) / 8, (age - 26) / 46], 0, 1)
    male = gender == "male"
    manly = (1 if male else -1) * (0.4 + 0.6 * adult) + rng.normal(0, 0.4)
    firm = manly * adult
    beards = (None, "stubble", "moustache", "goatee", "full")
    look = SimpleNamespace(rng=rng, age=age, male=male, child=child, adult=adult, old=old, firm=firm)
    look.tone = _mix(SKINS[skin][0], rng.integers(90, 230, 3), 0.06)
    look.dark = tuple(int(c * k) for c, k in zip(look.tone, (0.70, 0.55, 0.52), strict=True))
    look.style, look.hair = _hair_style(rng, gender, age), _hair_colour(rng, age, skin)
    look.hairline = str(rng.choice(["fringe", "parted", "parted", "up"]))
    look.parting = rng.uniform(-0.5, 0.5)
    look.w = 0.50 + 0.06 * child + 0.015 * manly + rng.normal(0, 0.015)
    look.h = 0.66 - 0.07 * child + 0.010 * manly + rng.normal(0, 0.015)
    look.jaw = np.clip(0.98 - 0.11 * firm - 0.14 * child + rng.normal(0, 0.05), 0.7, 1.2)
    look.eye_x, look.eye_y = look.w * rng.uniform(0.42, 0.46), -0.05 + 0.14 * child
    look.eye_rx = 0.108 + 0.022 * child + rng.normal(0, 0.005)
    look.eye_ry = (0.072 + 0.036 * child - 0.012 * old - 0.006 * firm) * rng.uniform(0.82, 1.12)
    look.iris = IRISES[rng.integers(2 if skin > 6 else len(IRISES))]
    look.mouth_y, look.smile = look.h * (0.56 - 0.02 * child), rng.uniform(0.1, 1.0)
    look.lipstick = not male and age > 15 and rng.random() < 0.5
    look.lashes = age > 2 and rng.random() < (0.05 if male else 0.8)
    look.earrings = rng.random() < (0.03 if male else 0.5 if age > 5 else 0.2)
    look.beard = beards[rng.choice(5, p=(0.48, 0.16, 0.09, 0.09, 0.18))] if male and age > 18 else None
    look.cloth, look.side = CLOTHES[rng.integers(len(CLOTHES))], rng.choice([-1, 1])
    return look


def _hair_style(rng, gender, age):
    shares = np.array(STYLE_SHARES[gender])
    if age < 4:  # little hair yet, and few cut it by gender
        shares = 0.5 * shares + (0, 0.02, 0, 0.05, 0.15, 0.05, 0, 0, 0.7 * (age < 3))
    elif gender == "female" and age > 55:
        shares = shares * (0.4, 1, 1.2, 1.2, 2.2, 1, 0, 0, 0)
    elif gender == "male" and age > 30:
        lost = min((age - 30) / 60, 0.65)
        shares = shares * (1 - lost) + lost * np.array((0, 0, 0, 0, 0, 0, 0.5, 0.5, 0))
    return str(rng.choice(STYLES, p=shares / shares.sum()))


def _hair_colour(rng, age, skin):
    colour = HAIR_COLOURS[rng.integers(len(HAIR_COLOURS) if skin < 4 else 5 if skin < 6 else 2)]
    if age < 60 or rng.random() > 0.12:  # some dye it
        colour = _mix(colour, (212, 210, 208), (age - 38 + rng.normal(0, 6)) / 34)
    return _mix(colour, (150, 110, 80), 0.25 * (age < 5))


def _head(look, start=0.0, stop=360.0, grow=1.0):
    """Outline of the head, (48, 2), clockwise, 0 degrees at the crown; `look.jaw` below 1 squares the jaw."""
    x, y = _circle(start - 90, stop - 90, 48).T
    jaw = np.where(y > 0, look.jaw + 0.1 * y, 0.94)
    x = np.sign(x) * np.abs(x) ** jaw * np.where(y > 0, 1 - 0.05 * (1 - look.child) * y, 1)
    return np.stack([x * look.w, y * look.h], 1) * grow


def _background(rng, pixels):
    """A plain or graded wall, now and then with soft lights."""
    wall = rng.uniform(110, 240) + rng.normal(0, 26, 3)
    corners = wall + rng.normal(0, rng.choice([3, 22]), (2, 2, 1)) + rng.normal(0, 7, (2, 2, 3))
    corners = Image.fromarray(np.clip(corners, 40, 250).astype(np.uint8))
    image = corners.resize((pixels, pixels), Image.Resampling.BILINEAR)
    for x, y, r in rng.uniform((-1, -1, 0.08), (1, 1, 0.3), (5 * (rng.random() < 0.3), 3)):
        _Pen(image).ellipse(x, y, r, r, WHITE, 34)
    return image


def _body(pen, look):
    """Shoulders, the hair behind, the neck over both with its collar and the shadow of the chin."""
    wide = 0.60 + 0.16 * look.adult + 0.05 * look.firm
    neck = look.w * (0.46 + 0.06 * look.firm - 0.04 * look.child)
    deep = look.rng.choice([0.84, 0.92, 1.02])
    pen.blob(_both([(neck, 0.75), (wide * 0.8, 0.88), (wide + 0.08, 1.1), (wide, 1.9)]), look.cloth)
    _hair_back(pen, look)
    pen.blob(_both([(neck, 0.3), (neck * 1.12, 0.78), (0, deep + 0.05)]), _mix(look.cloth, BLACK, 0.25))
    pen.blob(_both([(neck, 0.3), (neck, 0.74), (0, deep)]), look.tone)
    pen.blob(_both([(neck, 0.3), (neck, 0.62), (0, look.h + 0.1)]), look.dark, 110)


def _hair_back(pen, look):
    colour, w, h = _mix(look.hair, BLACK, 0.22), look.w, look.h
    if look.style in ("long", "bob"):
        end = look.rng.uniform(0.95, 1.5) if look.style == "long" else look.rng.uniform(0.45, 0.66)
        flare = look.rng.uniform(1.08, 1.32)
        side = _smooth([(w * 1.13, 0.02), (w * 1.17, 0.25), (w * flare, end * 0.85), (w * 0.85, end)])
        pen.shape(np.concatenate([_head(look, -90, 90, 1.13), _both(side)]), colour)
    elif look.style == "bun":
        x = look.side * look.rng.choice([0, 0.12])
        pen.ellipse(x, -h * 1.2, 0.21, 0.19, colour)
        pen.ellipse(x, -h * 1.24, 0.14, 0.11, look.hair)
    elif look.style == "curls":
        low = look.rng.choice([80, 105, 140]) * (0.75 if look.male else 1)
        for x, y in _head(look, -low, low, 1.07)[::3]:
            r = look.rng.uniform(0.13, 0.18)
            pen.ellipse(x, y, r, r, colour)


def _ears(pen, look):
    for x, y in ((-look.w, look.eye_y + 0.08), (look.w, look.eye_y + 0.08)):
        pen.ellipse(x, y, 0.075, 0.12 + 0.02 * look.old, look.tone)
        pen.ellipse(x, y, 0.04, 0.07, look.dark, 90)
        if look.earrings:
            pen.ellipse(x, y + 0.17, 0.035, 0.05, (236, 190, 70))


def _hair_front(pen, look):
    """The hair over the forehead; a bald head keeps a rim above the ears, a baby has a few wisps."""
    rng, w, h = look.rng, look.w, look.h
    if look.style == "wisp":
        for x in rng.uniform(-0.16, 0.16, 7):
            tip = (x * 1.6 + 0.12 * look.side, -h * 0.82 + abs(x) * 0.4)
            pen.stroke([(x * 0.5, -h * 1.02), (x * 1.5, -h * 1.06), tip], 0.045, look.hair)
    elif look.style == "bald":
        for x in (-w, w):
            pen.blob([(1.07 * x, -0.3), (1.09 * x, 0), (0.95 * x, 0.08), (0.93 * x, -0.28)], look.hair)
        pen.glow(-0.15 * look.side, -h * 0.78, 0.16, 0.09, WHITE, 110)
    else:
        puff = {"crop": 1.03, "receding": 1.04, "bun": 1.05, "short": 1.09}.get(look.style, 1.12)
        fixed = {"receding": "receding", "crop": "up", "bun": "up", "curls": "up"}
        line = _both(HAIRLINES[fixed.get(look.style, look.hairline)])
        line[:, 0] += look.parting * (1 - np.abs(line[:, 0]))
        line[1:-1, 1] -= 0.1 * (look.age < 4)
        line = _smooth(line * (w, h) + rng.normal(0, 0.01, line.shape))
        crown = _head(look, -97, 97, puff)
        pen.shape(np.concatenate([crown, line]), look.hair)
        _strands(pen, look, crown, line)


def _strands(pen, look, crown, line):
    """Light and dark hairs from the crown to the hairline, or curls along the crown."""
    light, shadow = _mix(look.hair, WHITE, 0.25), _mix(look.hair, BLACK, 0.3)
    if look.style == "curls":
        for x, y in crown[4:-4:4] * 0.93:
            pen.ellipse(x, y, 0.1, 0.1, look.hair)
            pen.stroke([(x - 0.06, y + 0.02), (x, y - 0.05), (x + 0.06, y + 0.02)], 0.02, light, 150)
        return
    pen.stroke(line[7:-7:7] + (0, 0.015), 0.03, shadow, 90)
    for share in look.rng.uniform(0.1, 0.9, 9):
        top, low = crown[int(share * 47)], line[::-1][int(share * len(line))]
        bend = (top + low) / 2 + (0.03 * look.side, -0.03)
        pen.stroke([top * 0.97, bend, low], 0.02, light if look.rng.random() < 0.55 else shadow, 130)


def _eyes(pen, look):
    rng, y, rx, ry = look.rng, look.eye_y, look.eye_rx, look.eye_ry
    gaze, droop = rng.normal(0, 0.012), 0.17 + 0.2 * look.old - 0.08 * look.child + rng.uniform(-0.08, 0.1)
    angle = math.degrees(math.asin(1 - 2 * droop)) * 0.8
    cut, r = y - ry * (1 - 2 * droop) * 0.86, min(ry * 0.97, rx * 0.66)
    lid, line = _mix(look.tone, look.dark, 0.35), _mix(look.dark, (30, 16, 16), 0.75)
    if look.lipstick and rng.random() < 0.5:
        lid = _mix(lid, rng.integers(60, 200, 3), 0.45)
    for side in (-1, 1):
        x = side * look.eye_x
        pen.glow(x, y, rx * 1.5, ry * 1.9, look.dark, 70)
        pen.ellipse(x, y, rx, ry, (250, 248, 244))
        pen.ellipse(x + gaze, y, r, r, look.iris)
        pen.ellipse(x + gaze, y, r * 0.52, r * 0.52, (18, 14, 16))
        pen.ellipse(x + gaze - r * 0.32, y - r * 0.36, r * 0.26, r * 0.26, WHITE)
        pen.ellipse(x, y, rx * 1.07, ry * 1.12, lid, start=180 + angle, stop=360 - angle)
        corners = (x - side * rx * 1.02, y), (x + side * rx * 1.12, y - ry * 0.12)
        pen.stroke([corners[0], (x, cut - ry * 0.1), corners[1]], 0.03 + 0.012 * look.lashes, line, ends=0.4)
        for k in (0.45, 0.8, 1.05) if look.lashes else ():
            root = np.array((x + side * rx * k * 0.95, cut + ry * 0.45 * k**2))
            pen.stroke([root, root + (side * 0.045 * k, -0.06)], 0.02, line, ends=0.5)
        _brow(pen, look, side, x, y - ry - 0.085 - 0.01 * look.child)


def _brow(pen, look, side, x, y):
    colour = _mix(look.hair, (40, 28, 24), 0.45 - 0.3 * look.old)
    width = np.clip(0.047 + 0.024 * look.firm - 0.010 * look.child, 0.018, 0.085)
    peak = (x + side * 0.03, y - 0.035 + 0.018 * look.firm)
    inner, outer = (x - side * 0.12, y + 0.015), (x + side * 0.145, y + 0.03)
    pen.stroke([inner, peak, outer], width, colour, 235, ends=0.35)


def _nose(pen, look):
    y, size = look.eye_y + 0.24 - 0.07 * look.child, 0.062 + 0.014 * look.firm + 0.012 * look.old
    side = look.side
    bridge = [(side * 0.045, look.eye_y + 0.02), (side * 0.05, y - 0.08), (side * size, y)]
    pen.stroke(bridge, 0.03, look.dark, 90)
    pen.glow(0, y - 0.02, size, size * 0.8, WHITE, 50)
    pen.stroke(_both([(size, y - 0.02), (size * 0.5, y + 0.03), (0, y + 0.022)]), 0.028, look.dark, 220)


def _mouth(pen, look):
    rng, y, up = look.rng, look.mouth_y, look.mouth_y - 0.07 * look.smile
    wide = (0.17 - 0.05 * look.child + 0.03 * look.smile) * rng.uniform(0.92, 1.1)
    full = np.clip(0.043 - 0.014 * look.firm - 0.014 * look.old + rng.normal(0, 0.005), 0.014, 0.07)
    gap = max(0.0, look.smile - 0.55) * rng.choice([0, 0.22])
    lip = _mix(look.tone, (176, 56, 64), 0.42)
    if look.lipstick:
        lip = _mix(lip, ((190, 30, 52), (206, 70, 96), (150, 40, 70))[rng.integers(3)], 0.75)
    low = [(wide, up), (wide * 0.45, y + gap + full), (0, y + gap + full * 1.5)]
    pen.blob(_both([(0, y - full * 0.75), (wide * 0.3, y - full), *low]), lip)
    if gap:
        teeth = [(0, y + 0.01), (wide, up), (wide * 0.45, y + gap * 0.8), (0, y + gap * 1.1)]
        pen.blob(_both(teeth), (252, 250, 244))
    pen.stroke(_both([(wide, up), (0, y + 0.01)]), 0.022, _mix(look.dark, (60, 10, 20), 0.6))


def _marks(pen, look):
    """Blush, freckles and what the years leave: lines on forehead, eye corners and cheeks, bags, spots."""
    rng, old, e, m = look.rng, look.old, look.eye_y, look.mouth_y
    blush = _mix(look.tone, (226, 60, 70), 0.6)
    for side in (-1, 1):
        pen.glow(side * look.w * 0.62, e + 0.24, 0.15, 0.1, blush, 110 - 50 * look.adult + 20 * look.lipstick)
    for x, y in rng.normal((0, e + 0.2), (0.17, 0.04), (16 * (look.age < 30 and rng.random() < 0.15), 2)):
        pen.ellipse(x, y, 0.012, 0.012, look.dark, 150)
    depth = np.clip(old * 1.15 + rng.normal(0, 0.06), 0, 1) * 215
    if depth < 20:
        return
    for k in range(int(1 + old * 3)):
        y, half = e - 0.24 - 0.075 * k, look.w * (0.5 - 0.05 * k) * rng.uniform(0.85, 1.1)
        furrow = [(-half, y + 0.012), (-half * 0.4, y - 0.01), (half * 0.3, y), (half, y + 0.012)]
        pen.stroke(furrow, 0.024, look.dark, depth)
    for side in (-1, 1):
        x, corner = side * look.eye_x, side * (look.eye_x + look.eye_rx * 1.15)
        for tilt in (-0.055, 0.0, 0.055)[: 1 + int(old * 2.5)]:
            crow = [(corner, e + tilt * 0.4), (corner + side * 0.09, e + tilt * 1.7)]
            pen.stroke(crow, 0.02, look.dark, depth)
        low = e + look.eye_ry + 0.015
        pen.stroke([(x - 0.1, low), (x, low + 0.04), (x + 0.1, low)], 0.022, look.dark, depth * 0.8)
        fold = [(side * 0.1, e + 0.22), (side * 0.2, e + 0.31), (side * 0.235, m + 0.01)]
        pen.stroke(fold, 0.028, look.dark, depth)
        if old > 0.6:
            pen.stroke([(side * 0.2, m + 0.05), (side * 0.21, m + 0.13)], 0.022, look.dark, depth)
            for x, y in rng.uniform((0.22, -0.45), (0.4, 0.25), (2, 2)):
                pen.ellipse(side * x, y, 0.02, 0.016, look.dark, 80)


def _beard(pen, look):
    """Stubble is the full beard's shape, see-through; moustache and goatee frame the mouth."""
    colour, y = _mix(look.hair, (30, 24, 22), 0.2 - 0.15 * look.old), look.mouth_y
    if look.beard in ("full", "stubble"):
        inner = _both([(-0.93, 0.02), (-0.80, 0.2), (-0.58, 0.36), (-0.3, 0.41), (0, 0.42)])
        rim = _head(look, 88, 272, 1.05 if look.beard == "full" else 1.0)
        shape = np.concatenate([rim, _smooth(inner * (look.w, look.h))])
        pen.shape(shape, colour, 240 if look.beard == "full" else 75)
    if look.beard == "goatee":
        pen.blob(_both([(0.13, y + 0.08), (0.11, look.h), (0, look.h * 1.08)]), colour, 235)
    if look.beard in ("moustache", "goatee"):
        wing = [(0, y - 0.1), (0.12, y - 0.085), (0.22, y - 0.01), (0.1, y - 0.03), (0, y - 0.04)]
        pen.blob(_both(wing), colour, 240)


def _lens(kind, rng):
    """Outline of one lens of radius 1, (40, 2)."""
    points = _circle(0, 351, 40)
    if kind in ("square", "sun"):
        points = np.sign(points) * np.abs(points) ** (0.4 if kind == "square" else 0.6) * (1.02, 0.74)
    elif kind == "funny":
        a = np.radians(np.linspace(0, 351, 40))
        if rng.random() < 0.5:  # stars
            return points * (1 + 0.2 * np.arcsin(np.sin(5 * a - 1.57)))[:, None]
        down = -13 * np.cos(a) + 5 * np.cos(2 * a) + 2 * np.cos(3 * a) + np.cos(4 * a)
        return np.stack([16 * np.sin(a) ** 3, down], 1) / 14  # hearts
    return points


def _glasses(pen, kind, eye_x, eye_y, ear_x, rng):
    """Put glasses on eyes at (-eye_x, eye_y) and (eye_x, eye_y); the temples reach to -ear_x and ear_x."""
    rims = RIMS.get(kind, PLAIN_RIMS)
    colour, width = rims[rng.integers(len(rims))], 0.044 if kind == "funny" else 0.03
    tint = colour if kind == "sun" else _mix(colour, WHITE, 0.6)
    lens = _lens(kind, rng) * min(eye_x * 0.82, 0.19)
    edge = lens[:, 0].max()
    for side in (-1, 1):
        rim, x = lens * (side, 1) + (side * eye_x, eye_y + 0.015), side * eye_x
        pen.shape(rim, tint, {"sun": 232, "funny": 120}.get(kind, 34))
        pen.stroke([*rim, *rim[:2]], width, colour, ends=1.0)
        pen.stroke([(x + side * edge, eye_y), (side * ear_x, eye_y - 0.02)], width, colour, ends=1.0)
        pen.stroke([(x - 0.08, eye_y + 0.01), (x - 0.02, eye_y - 0.07)], 0.028, WHITE, 120)
    pen.stroke(_both([(eye_x - edge, eye_y), (0, eye_y - 0.03)]), width, colour, ends=1.0)


def put_on(rng, image, eyes, kind):
    """Draw glasses of a kind of `GLASSES` onto a copy of a picture of a face.

    Parameters
    ----------
    image : PIL.Image.Image in RGB.
    eyes : ((x, y), (x, y)), the eye on the left of the picture and that on its right, pixels.

    Raises
    ------
    ValueError : for an unknown kind, or eyes that are less than two pixels apart.
    """
    if kind not in GLASSES:
        raise ValueError(f"unknown glasses {kind!r}; known: {', '.join(GLASSES)}")
    left, right = np.asarray(eyes, float)
    apart = float(np.hypot(*(right - left)))
    if apart < 2:
        raise ValueError(f"the eyes are {apart:.1f} pixels apart; at least 2 are needed")
    large = image.resize((image.width * SUPERSAMPLING, image.height * SUPERSAMPLING))
    half, eye_x = image.width / 2, 0.36
    pen = _Pen(large, math.atan2(*(right - left)[::-1]), apart / 2 / (eye_x * half), (left + right) / 2 / half - 1)
    _glasses(pen, kind, eye_x, 0.0, 2.2 * eye_x, rng)
    return large.reduce(SUPERSAMPLING)


def _light(rng, image):
    """Light from one side and the noise of a small camera."""
    pixels, ramp = np.asarray(image, np.float32), np.linspace(-1, 1, image.width, dtype=np.float32)
    across, down = rng.uniform((-0.14, -0.12), (0.14, 0.04)).astype(np.float32)
    gain = rng.uniform(0.84, 1.02) * (1 + across * ramp + down * ramp[:, None])
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 4)
    return Image.fromarray((pixels * gain[..., None] + noise).clip(0, 255).astype(np.uint8))


def draw_face(rng, gender, age, *, glasses=None, skin=None, size=128):
    """Draw one cartoon face as a PIL.Image.Image in RGB.

    Parameters
    ----------
    rng : all variety comes from it: the same state draws the same face.
    gender, glasses : one of `GENDERS`; one of `GLASSES`, or None.
    age : years, 1 to 90.
    skin : row of `SKINS`, light to dark; drawn at random if left out.
    size : width and height in pixels, at least 16.

    Raises
    ------
    ValueError : for a gender, kind of glasses, age, skin or size that is not among the above.

    >>> draw_face(np.random.default_rng(0), "female", 30, glasses="round").size
    (128, 128)
    """
    if gender not in GENDERS:
        raise ValueError(f"unknown gender {gender!r}; known: {', '.join(GENDERS)}")
    if glasses not in (None, *GLASSES):
        raise ValueError(f"unknown glasses {glasses!r}; known: None, {', '.join(GLASSES)}")
    if not 1 <= age <= 90:
        raise ValueError(f"age is {age}; it runs from 1 to 90 years")
    if skin not in (None, *range(len(SKINS))):
        raise ValueError(f"skin is {skin}; it runs from 0 to {len(SKINS) - 1}")
    if size < 16:
        raise ValueError(f"size is {size}; at least 16 pixels are needed")
    look = _look(rng, gender, age, int(rng.integers(len(SKINS))) if skin is None else skin)
    image = _background(rng, size * SUPERSAMPLING)
    pen = _Pen(image, rng.normal(0, 0.07), rng.uniform(0.96, 1.14), rng.normal((0, 0.06), 0.03))
    _body(pen, look)
    _ears(pen, look)
    pen.shape(_head(look), look.tone)
    for part in (_marks, _eyes, _nose, _beard, _mouth, _hair_front):  # back to front
        part(pen, look)
    if glasses:
        _glasses(pen, glasses, look.eye_x, look.eye_y, look.w, rng)
    return _light(rng, image.reduce(SUPERSAMPLING))
