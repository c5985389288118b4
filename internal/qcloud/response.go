package qcloud

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
)

// Result is what a call that succeeded returns: [CreateTaskResult],
// [DescribeTaskResult], [ListTasksResult], [CancelTaskResult], [ShadowResult] or
// [PublishResult].
type Result interface {
	// v2 and v3 return what is encoded as JSON.
	v2(outcomeV2) any
	v3(requestID string) any
}

// Status is the state of a task as the API counts it.
type Status int

// The states of a task (DescribeTask, status).
const (
	StatusWaiting Status = iota + 1
	StatusProcessing
	StatusDone
	StatusFailed
	StatusCancelled
)

// Task is what the API tells of a task. Times are Unix seconds, 0 where not yet.
type Task struct {
	// Type is "UpdateShadow" or "PublishMessage".
	Type string
	// ID is the task's ID, 24 lower-case hexadecimal digits.
	ID        string
	ProductID string
	Status    Status
	// CreateTime is when the task was created, UpdateTime when its state changed
	// last, DoneTime when it ended, ScheduleTime when it starts or started.
	CreateTime, UpdateTime, DoneTime, ScheduleTime int64
	// RetCode and ErrMsg say why a task failed; 0 and empty otherwise.
	RetCode int64
	ErrMsg  string
	// Percent is DoneDeviceCnt/AllDeviceCnt in whole percent, 0 to 100.
	Percent int64
	// AllDeviceCnt is how many devices the task is for, DoneDeviceCnt how many of
	// them have been served.
	AllDeviceCnt, DoneDeviceCnt int64
}

// CreateTaskResult is the result of [CreateTask].
type CreateTaskResult struct {
	// TaskID is the new task's ID, 24 lower-case hexadecimal digits.
	TaskID string
}

// DescribeTaskResult is the result of [DescribeTask].
type DescribeTaskResult struct {
	Task Task
}

// ListTasksResult is the result of [ListTasks].
type ListTasksResult struct {
	// Tasks are the tasks of the page, newest first. What the API does not tell in
	// lists (times other than CreateTime and UpdateTime, counts) is not used.
	Tasks []Task
	// Total is how many tasks there are on all pages.
	Total int64
}

// CancelTaskResult is the result of [CancelTask].
type CancelTaskResult struct{}

// WriteResult answers a call that succeeded: HTTP 200, in the envelope of the
// version. requestID is a UUID; V2 has no place for it.
func WriteResult(w http.ResponseWriter, v Version, requestID string, result Result) error {
	if v == V2 {
		return write(w, v, result.v2(outcomeV2{CodeDesc: "Success"}))
	}
	return write(w, v, envelopeV3{Response: result.v3(requestID)})
}

// WriteError answers a call that failed: HTTP 200 as well (clients take any other
// status for a broken connection), in the envelope of the version. An err that is
// no [*Error] is told as an internal error and no more.
func WriteError(w http.ResponseWriter, v Version, requestID string, err error) error {
	e := AsError(err)
	c := e.codes()
	if v == V2 {
		return write(w, v, dataV2{e.Data, outcomeV2{Message: e.Message(V2), CodeDesc: c.desc, Code: c.public}})
	}
	return write(w, v, envelopeV3{Response: failureV3{
		Error:     errorV3{Code: c.v3, Message: e.Message(V3)},
		RequestID: requestID,
	}})
}

// contentType is that of answers. Clients of V3 look for an error only in what is exactly
// application/json, and take anything else, a charset too, for a success without fields. No
// client of V2 looks, and the libraries below some take a text without a charset for Latin
// letters.
func contentType(v Version) string {
	if v == V3 {
		return "application/json"
	}
	return "application/json; charset=utf-8"
}

func write(w http.ResponseWriter, v Version, answer any) error {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // answers are read by programs and people, not by browsers
	if err := encoder.Encode(answer); err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	w.Header().Set("Content-Type", contentType(v))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := w.Write(body.Bytes()); err != nil {
		return fmt.Errorf("write an answer: %w", err)
	}
	return nil
}

// outcomeV2 ends every answer of V2, in the order of the documents. Clients need
// all three.
type outcomeV2 struct {
	Message  string `json:"message"`
	CodeDesc string `json:"codeDesc"`
	Code     int    `json:"code"`
}

// dataV2 is an answer with data, or without where Data is nil.
type dataV2 struct {
	Data json.RawMessage `json:"data,omitempty"`
	outcomeV2
}

type envelopeV3 struct {
	Response any `json:"Response"`
}

// emptyV3 is the answer to a call that has no result.
type emptyV3 struct {
	RequestID string `json:"RequestId"`
}

type failureV3 struct {
	Error     errorV3 `json:"Error"`
	RequestID string  `json:"RequestId"`
}

type errorV3 struct {
	Code    string `json:"Code"`
	Message string `json:"Message"`
}

func (r CreateTaskResult) v2(outcome outcomeV2) any {
	return struct {
		TaskID string `json:"taskId"`
		outcomeV2
	}{r.TaskID, outcome}
}

func (r CreateTaskResult) v3(requestID string) any {
	return struct {
		TaskID    string `json:"TaskId"`
		RequestID string `json:"RequestId"`
	}{r.TaskID, requestID}
}

func (CancelTaskResult) v2(outcome outcomeV2) any { return outcome }

func (CancelTaskResult) v3(requestID string) any { return emptyV3{requestID} }

// taskV2 and taskV3 have the fields of [Task] in its order, so that one converts
// to the other.
type taskV2 struct {
	Type          string `json:"type"`
	ID            string `json:"id"`
	ProductID     string `json:"productID"`
	Status        Status `json:"status"`
	CreateTime    int64  `json:"createTime"`
	UpdateTime    int64  `json:"updateTime"`
	DoneTime      int64  `json:"doneTime"`
	ScheduleTime  int64  `json:"scheduleTime"`
	RetCode       int64  `json:"retCode"`
	ErrMsg        string `json:"errMsg"`
	Percent       int64  `json:"percent"`
	AllDeviceCnt  int64  `json:"allDeviceCnt"`
	DoneDeviceCnt int64  `json:"doneDeviceCnt"`
}

type taskV3 struct {
	Type          string `json:"Type"`
	ID            string `json:"Id"`
	ProductID     string `json:"ProductId"`
	Status        Status `json:"Status"`
	CreateTime    int64  `json:"CreateTime"`
	UpdateTime    int64  `json:"UpdateTime"`
	DoneTime      int64  `json:"DoneTime"`
	ScheduleTime  int64  `json:"ScheduleTime"`
	RetCode       int64  `json:"RetCode"`
	ErrMsg        string `json:"ErrMsg"`
	Percent       int64  `json:"Percent"`
	AllDeviceCnt  int64  `json:"AllDeviceCnt"`
	DoneDeviceCnt int64  `json:"DoneDeviceCnt"`
}

func (r DescribeTaskResult) v2(outcome outcomeV2) any {
	return struct {
		taskV2
		outcomeV2
	}{taskV2(r.Task), outcome}
}

func (r DescribeTaskResult) v3(requestID string) any {
	return struct {
		taskV3
		RequestID string `json:"RequestId"`
	}{taskV3(r.Task), requestID}
}

// summaryV2 and summaryV3 are a task in a list.
type summaryV2 struct {
	Type       string `json:"type"`
	ID         string `json:"id"`
	ProductID  string `json:"productID"`
	Status     Status `json:"status"`
	CreateTime int64  `json:"createTime"`
	UpdateTime int64  `json:"updateTime"`
	RetCode    int64  `json:"retCode"`
	ErrMsg     string `json:"errMsg"`
}

type summaryV3 struct {
	Type       string `json:"Type"`
	ID         string `json:"Id"`
	ProductID  string `json:"ProductId"`
	Status     Status `json:"Status"`
	CreateTime int64  `json:"CreateTime"`
	UpdateTime int64  `json:"UpdateTime"`
	RetCode    int64  `json:"RetCode"`
	ErrMsg     string `json:"ErrMsg"`
}

func (r ListTasksResult) v2(outcome outcomeV2) any {
	tasks := make([]summaryV2, len(r.Tasks)) // [] and not null where there is none
	for i, t := range r.Tasks {
		tasks[i] = summaryV2{t.Type, t.ID, t.ProductID, t.Status, t.CreateTime, t.UpdateTime, t.RetCode, t.ErrMsg}
	}
	return struct {
		Tasks []summaryV2 `json:"tasks"`
		Total int64       `json:"taskTotalCount"`
		outcomeV2
	}{tasks, r.Total, outcome}
}

func (r ListTasksResult) v3(requestID string) any {
	tasks := make([]summaryV3, len(r.Tasks))
	for i, t := range r.Tasks {
		tasks[i] = summaryV3{t.Type, t.ID, t.ProductID, t.Status, t.CreateTime, t.UpdateTime, t.RetCode, t.ErrMsg}
	}
	return struct {
		Total     int64       `json:"TotalCount"`
		Tasks     []summaryV3 `json:"Tasks"`
		RequestID string      `json:"RequestId"`
	}{r.Total, tasks, requestID}
}
