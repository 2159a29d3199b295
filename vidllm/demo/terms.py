"""The words of the page, each with the line that says what it means."""

from __future__ import annotations

from html import escape

#: What a method is called that reduces nothing.
EVERY = "every token"
TERMS: dict[str, str] = {
    "video tokens": "The vectors that the vision tower makes of the frames and the LLM reads.",
    "kept": "The LLM reads this token; others may have been merged into it.",
    "merged": "Averaged into a token that stands elsewhere: its content is kept, its place is not.",
    "dropped": "Removed: the LLM does not see this place.",
    "KV cache": "Memory that the LLM holds for every token that it has read, in all its layers.",
    "TTFT": "Time to first token: from the question to the first word of the answer.",
    "whole answer": "Seconds of all stages together, until the last word.",
    "FLOPs": "Floating point operations of the whole call, predicted from the model's shapes.",
    "peak memory": "The most memory that the call held above what there was before it.",
    "moments": "The spans of time that the answer names.",
    "mean IoU": "Overlap of two spans as a share of both together; 100 % is the same span.",
    "read video": "Frames are decoded from the file and sampled.",
    "encode": "The vision tower turns frames into video tokens.",
    "compress": "A method keeps, merges or drops video tokens.",
    "prefill": "The LLM reads video tokens and question, before its first word.",
    "generate": "The LLM writes the answer, a token a step.",
    "waiting for the model": "Another visitor's run comes first; one run uses the model at a time.",
    "scan windows": "Every window of the index is asked.",
    "look closer": "The best windows are read again with more frames.",
    "measure memory": "A pass of its own counts the tensors that are held.",
    "score": "Mean probability that the model gave the tokens that spell this moment.",
}


def term(word: str, shown: str = "") -> str:
    """A word with its explanation, for the mouse, the keyboard and the finger; HTML.

    Args:
        word: of `TERMS`; another is shown plain. shown: what stands there instead of the word.
    """
    text = escape(shown or word)
    if word not in TERMS:
        return text
    return (
        f'<span class="vl-term" tabindex="0">{text}'
        f'<span role="tooltip">{escape(TERMS[word])}</span></span>'
    )
