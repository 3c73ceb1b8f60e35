"""`vggt-int8 eval`: models over scenes with known geometry, in one table headed by the difference from the first model.

`data` provides scenes, `cache` stores each model's predictions, so that scoring can be repeated without models, `rows`
fills it, `scores` measures every scene, `intervals` computes confidence intervals of differences, `summary` combines
them; `tables` and `page` write the report, `pictures` draws.
"""
