# Hydra finds packaged configs only in a package (pkg://se_lightning.conf).
