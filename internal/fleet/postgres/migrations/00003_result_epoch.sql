-- +goose Up

-- Only the run whose epoch stands in the row of its task may record results. A row that
-- an older program made has neither epoch nor name.
ALTER TABLE batchtask_result_task
    ADD COLUMN task_name text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN epoch     text COLLATE "C" NOT NULL DEFAULT '';

COMMENT ON COLUMN batchtask_result_task.epoch IS 'the run that may record results of the task';

-- +goose Down
ALTER TABLE batchtask_result_task DROP COLUMN epoch, DROP COLUMN task_name;
