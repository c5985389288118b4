package validation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/internal/validation"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func messages(errs field.ErrorList) []string {
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return texts
}

func TestDesired(t *testing.T) {
	const at = "spec.tasks.updateShadowTask.desired: "
	// 16384 bytes, and one more: the characters are of three bytes each.
	longest := `{"a":"` + strings.Repeat("门", 5458) + `12"}`
	for _, tc := range []struct {
		name, desired string
		want          []string // errors
	}{
		{name: "an object", desired: `{"state":"open"}`},
		{name: "an empty object", desired: `{}`},
		{name: "null deletes a field", desired: `{"state":null}`},
		{name: "five levels", desired: `{"a":{"b":{"c":{"d":{"e":1}}}}}`},
		{name: "white space around it", desired: " {\"a\":1}\n"},
		{name: "the largest, in bytes", desired: longest},
		{name: "not JSON", desired: `{"a":}`, want: []string{
			at + `Invalid value: "{\"a\":}": not a JSON value (byte 6): invalid character '}' looking for beginning of value`,
		}},
		{name: "empty", desired: ``, want: []string{
			at + `Invalid value: "": not a JSON value: unexpected end of JSON input`,
		}},
		{name: "more than one value", desired: `{} {}`, want: []string{
			at + `Invalid value: "{} {}": not a JSON value (byte 4): invalid character '{' after top-level value`,
		}},
		{name: "an array", desired: `[1]`, want: []string{at + `Invalid value: "[1]": not a JSON object: it is an array`}},
		{name: "a string", desired: `"a"`, want: []string{at + `Invalid value: "\"a\"": not a JSON object: it is a string`}},
		{name: "null", desired: `null`, want: []string{at + `Invalid value: "null": not a JSON object: it is null`}},
		{name: "six levels", desired: `{"a":{"b":{"c":{"d":{"e":{"f":1}}}}}}`, want: []string{
			at + `Invalid value: "{\"a\":{\"b\":{\"c\":{\"d\":{\"e\":{\"f\":1}}}}}}": more than 5 levels deep at a.b.c.d.e (byte 26)`,
		}},
		{name: "a key twice", desired: `{"a":1,"b":{"c":1,"c":2}}`, want: []string{
			at + `Invalid value: "{\"a\":1,\"b\":{\"c\":1,\"c\":2}}": illegal key at b.c (byte 21): the key stands twice in one object`,
		}},
		{name: "an empty key", desired: `{"":1}`, want: []string{
			at + `Invalid value: "{\"\":1}": illegal key (byte 3): a key is empty`,
		}},
		{name: "too large, with few characters", desired: longest + " ", want: []string{at + "Too long: may not be more than 16384 bytes"}},
		{name: "long and wrong: it is not quoted whole", desired: `["` + strings.Repeat("门", 1000) + `"]`, want: []string{
			at + `Invalid value: "[\"` + strings.Repeat("门", 20) + `…": not a JSON object: it is an array`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			task := testobj.BatchTask("a").UpdateShadow(tc.desired).Obj()
			if diff := cmp.Diff(tc.want, messages(validation.Spec(&task.Spec))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	const at = "spec.tasks.publishMessageTask."
	const rule = `must be 1 to 128 letters, digits, ':', '_' and '-': the part of the MQTT topic after {productID}/{deviceName}/`
	for _, tc := range []struct {
		name, topic, payload string
		want                 []string // errors
	}{
		{name: "the example", topic: "event", payload: "close"},
		{name: "all the characters", topic: "aZ09:_-"},
		{name: "the longest topic", topic: strings.Repeat("a", 128)},
		{name: "the largest payload", topic: "event", payload: strings.Repeat("a", 16384)},
		{name: "an empty topic", topic: "", want: []string{at + `topic: Invalid value: "": ` + rule}},
		{name: "a wildcard", topic: "+", want: []string{at + `topic: Invalid value: "+": ` + rule}},
		{name: "levels", topic: "a/b", want: []string{at + `topic: Invalid value: "a/b": ` + rule}},
		{name: "a line break at the end", topic: "event\n", want: []string{at + `topic: Invalid value: "event\n": ` + rule}},
		{name: "too long", topic: strings.Repeat("a", 129), want: []string{at + `topic: Invalid value: "` + strings.Repeat("a", 64) + `…": ` + rule}},
		{name: "a payload of too many bytes", topic: "event", payload: strings.Repeat("门", 5462), want: []string{
			at + "payload: Too long: may not be more than 16384 bytes",
		}},
		{name: "both", topic: "#", payload: strings.Repeat("a", 16385), want: []string{
			at + `topic: Invalid value: "#": ` + rule,
			at + "payload: Too long: may not be more than 16384 bytes",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			task := testobj.BatchTask("a").Publish(tc.topic, tc.payload).Obj()
			if diff := cmp.Diff(tc.want, messages(validation.Spec(&task.Spec))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// What the schema refuses can still be in an object that was written past it.
func TestSpecPastTheSchema(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec v1alpha1.BatchTaskSpec
		want []string // errors
	}{
		{name: "nothing at all", want: []string{
			`spec.productID: Invalid value: "": must be 1 to 32 letters and digits`,
			`spec.deviceNameFilter: Required value: must not be empty; ".*" matches all devices`,
			`spec.taskType: Unsupported value: "": supported values: "UpdateShadow", "PublishMessage"`,
		}},
		{
			name: "no block for UpdateShadow",
			spec: v1alpha1.BatchTaskSpec{TaskType: v1alpha1.TaskTypeUpdateShadow, ProductID: "P", DeviceNameFilter: "a"},
			want: []string{`spec.tasks.updateShadowTask: Required value: is required when taskType is UpdateShadow`},
		},
		{
			name: "no block for PublishMessage",
			spec: v1alpha1.BatchTaskSpec{TaskType: v1alpha1.TaskTypePublishMessage, ProductID: "P", DeviceNameFilter: "a"},
			want: []string{`spec.tasks.publishMessageTask: Required value: is required when taskType is PublishMessage`},
		},
		{
			name: "the wrong block",
			spec: testobj.BatchTask("a").UpdateShadow("{}").Change(func(task *v1alpha1.BatchTask) {
				task.Spec.TaskType = v1alpha1.TaskTypePublishMessage
			}).Obj().Spec,
			want: []string{`spec.tasks.publishMessageTask: Required value: is required when taskType is PublishMessage`},
		},
		{
			name: "another type",
			spec: testobj.BatchTask("a").Publish("event", "").Change(func(task *v1alpha1.BatchTask) { task.Spec.TaskType = "Reboot" }).Obj().Spec,
			want: []string{`spec.taskType: Unsupported value: "Reboot": supported values: "UpdateShadow", "PublishMessage"`},
		},
		{
			name: "numbers out of range",
			spec: testobj.BatchTask("a").Publish("event", "").ScheduleAt(-1).MaxExecution(86401).TTL(-1).Obj().Spec,
			want: []string{
				`spec.scheduleTimeInSeconds: Invalid value: -1: must be Unix seconds, or 0 for now`,
				`spec.maxExecutionTimeInSeconds: Invalid value: 86401: must be 0 to 86400 seconds`,
				`spec.ttlSecondsAfterFinished: Invalid value: -1: must not be negative`,
			},
		},
		{
			name: "a product ID with a topic in it",
			spec: testobj.BatchTask("a").Publish("event", "").Product("A/B").Obj().Spec,
			want: []string{`spec.productID: Invalid value: "A/B": must be 1 to 32 letters and digits`},
		},
		{
			name: "the block that is ignored is not checked",
			spec: testobj.BatchTask("a").Publish("+", "").UpdateShadow("{}").Obj().Spec,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, messages(validation.Spec(&tc.spec))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			// None of these may panic, whatever is nil.
			validation.Warnings(&tc.spec, now)
			validation.Schedule(&tc.spec, now, time.Second)
			validation.Topic(&tc.spec, testobj.Product("p").Topics("other").Obj())
		})
	}
}

func TestSchedule(t *testing.T) {
	const skew = 5 * time.Second
	for _, tc := range []struct {
		name         string
		at           int64
		want         []string // errors
		wantWarnings []string
	}{
		{name: "now", at: 0},
		{name: "just past, within the skew", at: now.Unix() - 5},
		{name: "past", at: now.Unix() - 6, want: []string{
			`spec.scheduleTimeInSeconds: Invalid value: 1772366394: is in the past: it is 2026-03-01T11:59:54Z, and now it is 2026-03-01T12:00:00Z; give a later time, or 0 for now`,
		}},
		{name: "a day ahead", at: now.Unix() + 86400},
		{name: "two days ahead", at: now.Unix() + 2*86400, wantWarnings: []string{
			`spec.scheduleTimeInSeconds: 2026-03-03T12:00:00Z is more than 86400 seconds ahead: the task will start 86400 seconds from now, at 2026-03-02T12:00:00Z`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			task := testobj.BatchTask("a").Publish("event", "close").ScheduleAt(tc.at).Obj()
			if diff := cmp.Diff(tc.want, messages(validation.Schedule(&task.Spec, now, skew))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantWarnings, validation.Warnings(&task.Spec, now)); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTopic(t *testing.T) {
	for _, tc := range []struct {
		name   string
		task   *v1alpha1.BatchTask
		topics []string
		want   []string // errors
	}{
		{name: "listed", task: testobj.BatchTask("a").Publish("event", "").Obj(), topics: []string{"control", "event"}},
		{name: "nothing is listed", task: testobj.BatchTask("a").Publish("event", "").Obj()},
		{name: "not listed", task: testobj.BatchTask("a").Publish("evnt", "").Obj(), topics: []string{"control", "event"}, want: []string{
			`spec.tasks.publishMessageTask.topic: Unsupported value: "evnt": supported values: "control", "event"`,
		}},
		{name: "a shadow update has no topic", task: testobj.BatchTask("a").UpdateShadow("{}").Obj(), topics: []string{"control"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			product := testobj.Product("p").Topics(tc.topics...).Obj()
			if diff := cmp.Diff(tc.want, messages(validation.Topic(&tc.task.Spec, product))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWarningsOfBothBlocks(t *testing.T) {
	for _, tc := range []struct {
		name string
		task *v1alpha1.BatchTask
		want []string
	}{
		{
			name: "UpdateShadow", task: testobj.BatchTask("a").Publish("event", "close").UpdateShadow("{}").Obj(),
			want: []string{"spec.tasks.publishMessageTask: is ignored, because spec.taskType is UpdateShadow"},
		},
		{
			name: "PublishMessage", task: testobj.BatchTask("a").UpdateShadow("{}").Publish("event", "close").Obj(),
			want: []string{"spec.tasks.updateShadowTask: is ignored, because spec.taskType is PublishMessage"},
		},
		{name: "one block", task: testobj.BatchTask("a").Publish("event", "close").Obj()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, validation.Warnings(&tc.task.Spec, now)); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}
