"""What is remembered: storages, studies and their trials.

- `catalog`: The studies of a storage: what one belongs to, finding the right one, and naming the next.
- `checkpoints`: The folder in which stopped trials leave what they need to go on.
- `database_server`: A storage in a database server, PostgreSQL or MySQL: how it is opened, and the lock of its one
  writer.
- `journal`: A storage as a journal file: one line for each write, for network file systems on which SQLite's locks do
  not work.
- `location`: Where a storage is: a file, a journal, a database server, or nowhere but in memory.
- `naming`: What a study is called when the user does not say.
- `optuna_parameters`: How a setting looks to Optuna: parameters and their distributions, so that dashboards and
  importances work.
- `optuna_tables`: Whether the tables of a database are those of Optuna.
- `own_files`: Files and folders that bstune makes: complete from the start, and opened only where they are what they
  should be.
- `records`: The trials of a search as it goes on, in memory; a study is this, and writes down what happens.
- `model_files`: Trained models that are kept: a file of torch with a header, complete from the start, and over nothing
  but its own.
- `spec_json`: Plans, spaces and facts as JSON, and read back; Optuna distributions may be in a space.
- `sqlite`: A storage as a SQLite file: proved to be Optuna's before it is written to, opened by its path and nothing
  else.
- `storage`: The storage that remembers: an ordinary Optuna storage with exactly one writer and any number of readers.
- `storage_errors`: What a database, a file system or a driver can say, as one clear error that says what to do.
- `study`: The study that remembers a search: settings, probe and trials, written as they happen and read back
  exactly.
- `trial_logs`: What the runs of a command have printed: a folder beside the storage, with a file for each trial.
- `trial_writes`: Writes what happens to a trial into Optuna's tables: one short transaction for each event.
- `trial_rows`: Reads the trials of a study out of Optuna's tables at once: through Optuna's own objects ten thousand
  of them take ten seconds.
- `writer_lock`: The lock of the one writer of a storage file.
"""
