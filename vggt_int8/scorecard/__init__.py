"""`vggt-int8 eval`: models over scenes with known geometry, in one table headed by the difference from the first.

`data` gives scenes, `cache` keeps what each model made of them, so that scoring can be repeated without models, `rows`
fills it, `scores` measures every scene, `intervals` says how sure a difference is, `summary` puts it together; `tables`
and `page` write it down, `pictures` draws.
"""
