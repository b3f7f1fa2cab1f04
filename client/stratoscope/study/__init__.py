"""Studies: a whole programme of experiments as one file, from stimuli to a report.

Start at `catalogue.read_study` (where a study comes from) and `config.Study` (what it is), then `running.run_study`
(what happens to it): ``stratoscope study run`` is these three.
"""
