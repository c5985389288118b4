-- +goose Up

-- Names of devices are levels of MQTT topics, so none may hold what has a meaning
-- there. The rule is a domain's and not a table's: a table's is checked again with
-- each change of a shadow.
CREATE DOMAIN batchtask_device_name AS text COLLATE "C"
    CHECK (VALUE ~ '^[a-zA-Z0-9:_-]{1,48}$');
CREATE DOMAIN batchtask_product_id AS text COLLATE "C"
    CHECK (VALUE ~ '^[a-zA-Z0-9]{1,32}$');

-- The shadow documents are text: both json types would change long numbers or
-- the letters around them. Pages keep half their room free: a change of a shadow then
-- finds room on the page of its row (a HOT update) and does not write the index.
CREATE TABLE batchtask_device (
    namespace     text COLLATE "C" NOT NULL,
    product_id    batchtask_product_id NOT NULL,
    device_name   batchtask_device_name NOT NULL,
    disabled      boolean NOT NULL DEFAULT false,
    version       bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    changed_ms    bigint NOT NULL DEFAULT 0,
    reported      text NOT NULL DEFAULT '' CHECK (octet_length(reported) <= 65536),
    desired       text NOT NULL DEFAULT '' CHECK (octet_length(desired) <= 65536),
    metadata      text NOT NULL DEFAULT '' CHECK (octet_length(metadata) <= 524288),
    applied_tasks text[] NOT NULL DEFAULT '{}' CHECK (cardinality(applied_tasks) <= 16),
    acknowledged  smallint NOT NULL DEFAULT 0 CHECK (acknowledged BETWEEN 0 AND cardinality(applied_tasks)),
    PRIMARY KEY (namespace, product_id, device_name) INCLUDE (disabled)
) WITH (fillfactor = 50);

-- How many devices have acknowledged a task is the sum of its rows. There are several,
-- each for some of the sessions, so that devices that acknowledge at the same time
-- seldom wait for each other. They change all the time, and have room for that.
CREATE TABLE batchtask_acknowledged (
    task_uid   text COLLATE "C" NOT NULL,
    namespace  text COLLATE "C" NOT NULL,
    product_id batchtask_product_id NOT NULL,
    shard      smallint NOT NULL,
    devices    bigint NOT NULL,
    PRIMARY KEY (task_uid, namespace, product_id, shard)
) WITH (fillfactor = 20);

COMMENT ON TABLE batchtask_acknowledged IS 'how many devices have acknowledged a task';
COMMENT ON TABLE batchtask_device IS 'devices and their shadows';
COMMENT ON COLUMN batchtask_device.changed_ms IS 'time of the last change of the shadow, Unix milliseconds';
COMMENT ON COLUMN batchtask_device.applied_tasks IS 'UIDs of the last tasks that changed the desired part, the newest last';
COMMENT ON COLUMN batchtask_device.acknowledged IS 'how many of applied_tasks, from the first, the device has acknowledged';

-- +goose Down
DROP TABLE batchtask_acknowledged;
DROP TABLE batchtask_device;
DROP DOMAIN batchtask_product_id;
DROP DOMAIN batchtask_device_name;
