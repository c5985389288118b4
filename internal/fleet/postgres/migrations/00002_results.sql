-- +goose Up

-- One row says what became of the devices of a task with after_name < name <=
-- upto_name. The ranges of a task do not overlap. A row for each device would cost as
-- much as the task itself.
CREATE TABLE batchtask_result_range (
    task_uid   text COLLATE "C" NOT NULL,
    upto_name  text COLLATE "C" NOT NULL,
    after_name text COLLATE "C" NOT NULL,
    succeeded  text[] NOT NULL,
    at_ms      bigint NOT NULL,
    PRIMARY KEY (task_uid, upto_name)
);

CREATE TABLE batchtask_result_failure (
    task_uid    text COLLATE "C" NOT NULL,
    device_name text COLLATE "C" NOT NULL,
    reason      text NOT NULL,
    message     text NOT NULL,
    at_ms       bigint NOT NULL,
    PRIMARY KEY (task_uid, device_name)
);

-- A row for each task that has results; who writes results holds its lock.
CREATE TABLE batchtask_result_task (
    task_uid   text COLLATE "C" PRIMARY KEY,
    namespace  text COLLATE "C" NOT NULL,
    product_id text COLLATE "C" NOT NULL
);

COMMENT ON TABLE batchtask_result_range IS 'devices that have succeeded, by task and range of names';
COMMENT ON TABLE batchtask_result_failure IS 'devices that have failed, by task';
COMMENT ON TABLE batchtask_result_task IS 'tasks that have results';

-- +goose Down
DROP TABLE batchtask_result_task;
DROP TABLE batchtask_result_failure;
DROP TABLE batchtask_result_range;
