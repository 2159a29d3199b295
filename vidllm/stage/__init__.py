"""The `stage` world: glyph actors with timed actions, made from seeds, with exact ground truth.

`words` names things, `scenes` draws a scene from a seed, `tracks` says where every sprite is at
any second, `render` paints frames, `questions` asks about a scene, `files` writes real videos
and annotation files. Training renders in memory through the same `render` as the files.
"""
