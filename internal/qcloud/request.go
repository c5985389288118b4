package qcloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Request is what a call asks for, whatever the version: a [*CreateTask],
// [*DescribeTask], [*ListTasks], [*CancelTask], [*GetDeviceShadow],
// [*UpdateDeviceShadow] or [*Publish].
type Request interface{ request() }

// Values of taskType.
const (
	TaskTypeUpdateShadow   = "UpdateShadow"
	TaskTypePublishMessage = "PublishMessage"
)

// CreateTask asks for a new task. Its texts are as the caller wrote them; whether
// they are legal is not decided here.
type CreateTask struct {
	// TaskType is TaskTypeUpdateShadow or TaskTypePublishMessage.
	TaskType         string
	ProductID        string
	DeviceNameFilter string
	// UpdateShadow or PublishMessage is set, as TaskType says.
	UpdateShadow   *UpdateShadow
	PublishMessage *PublishMessage
	// ScheduleTimeInSeconds is when the task starts, in Unix seconds; 0 is now.
	ScheduleTimeInSeconds int64
	// MaxExecutionTimeInSeconds is how long it may run; 0, also where the caller
	// gives none, is the default.
	MaxExecutionTimeInSeconds int32
}

// UpdateShadow is tasks.updateShadowTask.
type UpdateShadow struct {
	// Desired is a text that should hold a JSON object.
	Desired string
}

// PublishMessage is tasks.publishMessageTask.
type PublishMessage struct {
	Topic, Payload string
}

// DescribeTask asks for one task.
type DescribeTask struct{ ID string }

// CancelTask asks for a task not to start.
type CancelTask struct{ ID string }

// ListTasks asks for a page of the account's tasks, newest first: ListTasks in V2,
// DescribeTasks in V3.
type ListTasks struct {
	// Offset is how many tasks come before the page: at least 0.
	Offset int64
	// Limit is how many tasks the page has at most: 1 to 250.
	Limit int
}

func (*CreateTask) request()   {}
func (*DescribeTask) request() {}
func (*ListTasks) request()    {}
func (*CancelTask) request()   {}

// maxPage is the longest page (ListTasks, pageSize; DescribeTasks, Limit).
const maxPage = 250

// Decode returns what the call asks for. Parameters that no action has are
// ignored. Errors are of kind NoSuchVersion, UnknownAction, MissingParameter,
// InvalidParameter (wrong type), InvalidValue (a number out of range, a taskType
// that there is not) and BadRequest (a body that is no JSON object).
func (c *Call) Decode() (Request, error) {
	switch {
	case c.Version == V3 && c.apiVersion == "":
		return nil, Errorf(KindMissingParameter, "Version", "is missing: %s", VersionV3)
	case c.Version == V3 && c.apiVersion != VersionV3:
		return nil, Errorf(KindNoSuchVersion, "Version", "must be %s", VersionV3)
	case c.Action == "":
		return nil, Errorf(KindMissingParameter, "Action", "is missing")
	case !c.Known():
		return nil, Errorf(KindUnknownAction, "Action", "%.64q is none of this version's", c.Action)
	}
	call, err := c.fields()
	if err != nil {
		return nil, err
	}
	d := decoder{version: c.Version}
	var request Request
	switch c.Action {
	case ActionCreateTask:
		request = d.createTask(call)
	case ActionDescribeTask:
		request = &DescribeTask{ID: d.id(call)}
	case ActionCancelTask:
		request = &CancelTask{ID: d.id(call)}
	case ActionListTasks, ActionDescribeTasks:
		request = d.listTasks(call)
	case ActionUpdateDeviceShadow:
		request = d.updateDeviceShadow(call)
	case ActionPublish, ActionPublishMessage:
		request = d.publish(call)
	default:
		request = &GetDeviceShadow{d.device(call)}
	}
	if d.err != nil {
		return nil, d.err
	}
	return request, nil
}

// object is a JSON object, or what stands for one in a form. Its values are of the
// types that encoding/json gives; the texts of a form are strings.
type object struct {
	path   string // its name as in V2 with a dot at the end; "" for the call itself
	fields map[string]any
}

// fields returns the parameters of the call.
func (c *Call) fields() (object, error) {
	if c.params == nil {
		fields, err := parseObject(c.body)
		if err != nil {
			return object{}, Errorf(KindBadRequest, "", "the body: %w", err)
		}
		return object{fields: fields}, nil
	}
	tasks := c.Version.Parameter("tasks")
	params, err := c.dotted()
	if err != nil {
		return object{}, err
	}
	fields, err := nest(params, tasks)
	if err != nil {
		return object{}, err
	}
	// In V2 tasks is a text that holds JSON.
	if text, ok := fields[tasks].(string); ok && c.Version == V2 {
		if fields[tasks], err = parseObject([]byte(text)); err != nil {
			return object{}, Errorf(KindInvalidParameter, tasks, "%w", err)
		}
	}
	return object{fields: fields}, nil
}

// dotted returns the parameters with "." in the names of V2 where callers may write "_" as
// well: the signature is the same, so whoever passes a call on may put the one for the other,
// and both must mean the same.
func (c *Call) dotted() (map[string]string, error) {
	if c.Version != V2 {
		return c.params, nil
	}
	all := make(map[string]string, len(c.params))
	for name, value := range c.params {
		if inner := dots(name); strings.HasPrefix(inner, "tasks.") {
			name = inner
		}
		if _, exists := all[name]; exists {
			return nil, Errorf(KindInvalidParameter, name, `is given twice, with "." and with "_"`)
		}
		all[name] = value
	}
	return all, nil
}

// nest returns the parameters, with those of the form "root.a.b" as an object
// under root: V3 writes them so in a query, and the V2 client for Node.js makes
// them of an object.
func nest(params map[string]string, root string) (map[string]any, error) {
	fields := map[string]any{}
	// Sorted, so that "root" comes before "root.a".
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if !strings.HasPrefix(name, root+".") {
			fields[name] = params[name]
			continue
		}
		at, steps := fields, strings.Split(name, ".")
		for _, step := range steps[:len(steps)-1] {
			if at[step] == nil {
				at[step] = map[string]any{}
			}
			inner, ok := at[step].(map[string]any)
			if !ok {
				return nil, Errorf(KindInvalidParameter, name, "a part of it is given as a whole as well")
			}
			at = inner
		}
		at[steps[len(steps)-1]] = params[name]
	}
	return fields, nil
}

// decoder reads typed values and keeps the first error.
type decoder struct {
	version Version
	err     error
}

func (d *decoder) createTask(call object) *CreateTask {
	task := &CreateTask{
		TaskType:                  d.text(call, "taskType"),
		ProductID:                 d.text(call, "productID"),
		DeviceNameFilter:          d.text(call, "deviceNameFilter"),
		ScheduleTimeInSeconds:     d.integer(call, "scheduleTimeInSeconds", 64, true),
		MaxExecutionTimeInSeconds: int32(d.integer(call, "maxExecutionTimeInSeconds", 32, false)), //nolint:gosec // read as 32 bits
	}
	tasks := d.object(call, "tasks")
	if d.err != nil {
		return nil
	}
	// The block that does not belong to the task type is ignored, whatever it is.
	switch task.TaskType {
	case TaskTypeUpdateShadow:
		block := d.object(tasks, "updateShadowTask")
		task.UpdateShadow = &UpdateShadow{Desired: d.text(block, "desired")}
	case TaskTypePublishMessage:
		block := d.object(tasks, "publishMessageTask")
		task.PublishMessage = &PublishMessage{Topic: d.text(block, "topic"), Payload: d.text(block, "payload")}
	default:
		d.fail(KindInvalidValue, "taskType", "must be %s or %s", TaskTypeUpdateShadow, TaskTypePublishMessage)
	}
	return task
}

// id returns the ID of a task. An ID of another form than IDs have names no task;
// that is for whoever looks for it to find.
func (d *decoder) id(call object) string {
	id := d.text(call, "id")
	if id == "" {
		d.fail(KindMissingParameter, "id", "is empty")
	}
	return id
}

func (d *decoder) listTasks(call object) *ListTasks {
	if d.version == V3 {
		return &ListTasks{
			Offset: d.within(call, "offset", 0, 1<<31-1),
			Limit:  int(d.within(call, "limit", 1, maxPage)),
		}
	}
	page, size := d.within(call, "pageNum", 1, 1<<31-1), d.within(call, "pageSize", 1, maxPage)
	return &ListTasks{Offset: (page - 1) * size, Limit: int(size)}
}

// text reads a required string.
func (d *decoder) text(o object, name string) string {
	switch value := o.fields[d.version.Parameter(name)].(type) {
	case string:
		return value
	case nil:
		d.fail(KindMissingParameter, o.path+name, "is missing")
	default:
		d.fail(KindInvalidParameter, o.path+name, "must be a string, it is %s", typeName(value))
	}
	return ""
}

// optional reads a string that may be missing.
func (d *decoder) optional(o object, name string) string {
	if o.fields[d.version.Parameter(name)] == nil {
		return ""
	}
	return d.text(o, name)
}

// integer reads a number, written as one or as a text. An empty text is none:
// the client for Node.js sends it for undefined.
func (d *decoder) integer(o object, name string, bits int, required bool) int64 {
	var text string
	switch value := o.fields[d.version.Parameter(name)].(type) {
	case nil:
	case string:
		text = value
	case json.Number:
		text = value.String()
	default:
		d.fail(KindInvalidParameter, o.path+name, "must be an integer, it is %s", typeName(value))
		return 0
	}
	if text == "" {
		if required {
			d.fail(KindMissingParameter, o.path+name, "is missing")
		}
		return 0
	}
	n, err := strconv.ParseInt(text, 10, bits)
	switch {
	case errors.Is(err, strconv.ErrRange):
		d.fail(KindInvalidValue, o.path+name, "is out of range")
	case err != nil:
		d.fail(KindInvalidParameter, o.path+name, "must be an integer")
	default:
		return n
	}
	return 0
}

// within reads a required number from low to high.
func (d *decoder) within(o object, name string, low, high int64) int64 {
	n := d.integer(o, name, 64, true)
	if n < low || n > high {
		d.fail(KindInvalidValue, o.path+name, "must be %d to %d", low, high)
	}
	return n
}

// object reads a required object.
func (d *decoder) object(o object, name string) object {
	inner := object{path: o.path + name + "."}
	switch value := o.fields[d.version.Parameter(name)].(type) {
	case map[string]any:
		inner.fields = value
	case nil:
		d.fail(KindMissingParameter, o.path+name, "is missing")
	default:
		d.fail(KindInvalidParameter, o.path+name, "must be an object, it is %s", typeName(value))
	}
	return inner
}

func (d *decoder) fail(kind Kind, parameter, format string, args ...any) {
	if d.err == nil {
		d.err = Errorf(kind, d.version.Parameter(parameter), "%s", fmt.Sprintf(format, args...))
	}
}
