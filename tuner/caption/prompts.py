"""What models are asked, by purpose. Leave out of the captions what the trigger word is to mean; describe the rest."""

from __future__ import annotations

END = (
    "Write plain English in {sentences}. State only what is there; do not guess, judge or interpret. "
    "Answer with the description alone, without an introduction."
)

PICTURE = {
    "general": (
        "Describe this picture so that it could be painted again from your words: the kind of picture (photograph, "
        "drawing, painting, render), the subject, what it does, the surroundings, the light, the colours, and from "
        "where it is seen."
    ),
    "person": (
        "Describe this picture of a person, whom you call {subject}. Tell what changes from picture to picture: "
        "clothing, pose, expression, direction of the gaze, what the person does, the surroundings, the light, how "
        "much of the body is shown and from which side. Leave out what always belongs to this person: the face and its "
        "features, eyes, skin, age, build and natural hair. Give no name, and compare with nobody."
    ),
    "style": (
        "Describe what this picture shows, as if you told someone who will draw it in another manner: the subjects, "
        "what they do, the objects, the surroundings, and where everything is placed. Say nothing of how it is made: "
        "no medium, technique, brushwork, line, palette, texture, artist, era or mood of the style."
    ),
    "object": (
        "Describe this picture of an object, which you call {subject}. Tell where it is, what is around it and behind "
        "it, how it lies or is held, from which side and how near it is seen, and the light. Leave out what always "
        "belongs to this object: its shape, colours, material, parts, markings and maker."
    ),
    "motion": (
        "Describe who or what is shown, the surroundings, the light, and from where it is seen. If there are several "
        "pictures, tell in order where things are and how the camera moves. Name the movement that stands out with one "
        "plain verb, and do not describe how it looks."
    ),
}

SOUND = (
    "Describe this recording for someone who cannot hear it: what kind of sound or music it is, genre, instruments and "
    "sources, voices, tempo, mood and quality of the recording."
)

TASKS = {
    "general": "<MORE_DETAILED_CAPTION>",
    "person": "<CAPTION>",
    "style": "<DETAILED_CAPTION>",
    "object": "<CAPTION>",
    "motion": "<DETAILED_CAPTION>",
}
"""Florence-2 knows tasks instead of instructions: the shorter, the less it tells of what should be left out."""


def picture(purpose: str, stills: int, trigger: str | None) -> str:
    """The question for one picture, or for the stills of one video."""
    what = {"person": "the person", "object": "the object"}
    said = PICTURE[purpose].format(subject=f'"{trigger}"' if trigger else what.get(purpose, ""))
    if stills > 1:
        said = f"These {stills} pictures are moments of one video, in order; describe the video. {said}"
    return f"{said} {END.format(sentences='one to four sentences')}"


def sound() -> str:
    """The question for one recording."""
    return f"{SOUND} {END.format(sentences='one or two sentences')}"
