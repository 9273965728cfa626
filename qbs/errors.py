"""The exceptions that qbs raises on purpose: each says what is wrong, where, and what to do."""


class QbsError(Exception):
    """Any error that qbs raises on purpose; catch this to catch them all."""


class ModelError(QbsError, ValueError):
    """The model cannot be used as asked: no latent sites, duplicate names, a prior without a transform."""


class LikelihoodError(QbsError, ValueError):
    """The log likelihood returned NaN or +inf, is `-inf` everywhere, has a wrong shape, or raised."""


class DataError(QbsError, ValueError):
    """A data table is missing, damaged or of the wrong shape."""


class RunFileError(QbsError, ValueError):
    """A run file is not valid; the message names the line and the accepted values."""


class PosteriorFileError(QbsError, ValueError):
    """A file is not a saved posterior, is damaged, or was written by a newer version."""


class CheckpointError(QbsError, ValueError):
    """A checkpoint is damaged, or is of another run; the message says what differs."""


class ExecutorError(QbsError, RuntimeError):
    """Workers cannot be given the likelihood, do not start, hang, or are gone; the message says which."""


class MissingExtraError(QbsError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""


class ProgramError(QbsError, ValueError):
    """A program cannot be traced or interpreted; the message names the site or the JAX primitive."""
