use std::path::PathBuf;

use crate::ConfigError;

/// Why a step was not taken, or was the last.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// An activation is not a number, infinite, or too large to be squared. The state is as it was before the step.
    #[error("step {step}: row {row} of the batch holds a value that is not finite or whose square is not")]
    NotFinite {
        /// Step, the first being 0.
        step: u64,
        /// Row of the batch.
        row: usize,
    },
    /// The loss or a weight left the finite numbers, or the reconstruction became far worse than none. The state is of no more use; the last checkpoint is.
    #[error("training diverged at step {step}: {what}; lower the learning rate (now {lr})")]
    Diverged {
        /// Step, the first being 0.
        step: u64,
        /// What was found.
        what: &'static str,
        /// The step's learning rate.
        lr: f32,
    },
    /// No latent was active for as many steps as make a latent dead, and nothing brings latents back any more. The step was taken.
    #[error(
        "at step {step} all latents are dead: none was active for {after} steps; lower alpha, or set resample_every (aux_k for families \
         that choose the largest)"
    )]
    AllDead {
        /// Step, the first being 0.
        step: u64,
        /// The setting `dead_after_steps`.
        after: u64,
    },
    /// A device does not do what it was asked. The state on it is of no more use; the last checkpoint is.
    #[error("{device}: {problem}")]
    Device {
        /// Which.
        device: String,
        /// What it said, and what to do.
        problem: String,
    },
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
}

/// Why training stopped with an error; `E` is the caller's, from making a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaeError<E> {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A step could not be taken.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A step of one member of an ensemble could not be taken; the others are saved as they were then.
    #[error("member {member} of the ensemble: {source}")]
    Member {
        /// Which, the first being 0.
        member: usize,
        /// What happened.
        source: StepError,
    },
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint found belongs to another training run.
    #[error(
        "{} holds the checkpoint of another run: {key} is {found} there and {expected} here; \
         remove the folder to start afresh",
        folder.display()
    )]
    OtherRun {
        /// Where the checkpoint is.
        folder: PathBuf,
        /// The first setting that differs.
        key: String,
        /// Its value in the checkpoint.
        found: String,
        /// Its value asked for.
        expected: String,
    },
    /// The caller could not make a batch.
    #[error("the batch of step {step} could not be made: {source}")]
    Batch {
        /// Step, the first being 0.
        step: u64,
        /// The caller's error.
        source: E,
    },
}
