package qcloud

import "strings"

// Version is a version of the HTTP API.
type Version uint8

// The versions of the HTTP API.
const (
	// V2 is the API at /v2/index.php, with numeric codes.
	V2 Version = iota + 2
	// V3 is the API at /, version 2018-06-14, with codes that are words.
	V3
)

// VersionV3 is the value of the parameter Version, or of the header X-TC-Version,
// of the one version of the V3 API that is known.
const VersionV3 = "2018-06-14"

// Path returns the path at which the version is served, which callers sign.
func (v Version) Path() string {
	if v == V2 {
		return "/v2/index.php"
	}
	return "/"
}

// String returns "v2" or "v3".
func (v Version) String() string {
	if v == V2 {
		return "v2"
	}
	return "v3"
}

// Parameter returns how the version spells a parameter of which the name in V2 is
// given: of "tasks.updateShadowTask.desired" V3 makes
// "Tasks.UpdateShadowTask.Desired", of "productID" "ProductId", and of "version", since
// Version is that of the API there, "ShadowVersion". Field names of a BatchTask's spec
// are names of V2.
func (v Version) Parameter(name string) string {
	if v == V2 {
		return name
	}
	steps := strings.Split(name, ".")
	for i, step := range steps {
		switch step {
		case "productID":
			step = "productId"
		case "version":
			step = "shadowVersion"
		}
		if step != "" {
			step = strings.ToUpper(step[:1]) + step[1:]
		}
		steps[i] = step
	}
	return strings.Join(steps, ".")
}

// The actions of the API.
const (
	ActionCreateTask    = "CreateTask"
	ActionDescribeTask  = "DescribeTask"
	ActionListTasks     = "ListTasks"     // V2
	ActionDescribeTasks = "DescribeTasks" // V3
	ActionCancelTask    = "CancelTask"

	ActionGetDeviceShadow      = "GetDeviceShadow"      // V2
	ActionDescribeDeviceShadow = "DescribeDeviceShadow" // V3
	ActionUpdateDeviceShadow   = "UpdateDeviceShadow"
	ActionPublish              = "Publish"        // V2
	ActionPublishMessage       = "PublishMessage" // V3
)

// knows reports whether the version has the action.
func (v Version) knows(action string) bool {
	switch action {
	case ActionCreateTask, ActionDescribeTask, ActionCancelTask, ActionUpdateDeviceShadow:
		return true
	case ActionListTasks, ActionGetDeviceShadow, ActionPublish:
		return v == V2
	case ActionDescribeTasks, ActionDescribeDeviceShadow, ActionPublishMessage:
		return v == V3
	default:
		return false
	}
}
