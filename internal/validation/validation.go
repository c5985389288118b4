// Package validation holds the rules of a BatchTask that its schema cannot say,
// as pure functions that return field errors. The admission webhook applies them
// to what is created, the reconciler again to what was created past the webhook.
package validation

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/namefilter"
	"batchtask.dev/operator/internal/schedule"
	"batchtask.dev/operator/internal/shadow"
)

// MaxPayloadBytes is the largest payload of a message, in bytes.
const MaxPayloadBytes = 16 << 10

// Spec checks what holds of a task at any time, whatever else exists. It trusts
// nothing: an object that was written past the schema is checked as well.
func Spec(spec *v1alpha1.BatchTaskSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if !ProductID(spec.ProductID) {
		errs = append(errs, field.Invalid(path.Child("productID"), spec.ProductID, "must be 1 to 32 letters and digits"))
	}
	errs = append(errs, filter(spec.DeviceNameFilter, path.Child("deviceNameFilter"))...)
	errs = append(errs, details(spec, path)...)
	if spec.ScheduleTimeInSeconds < 0 {
		errs = append(errs, field.Invalid(path.Child("scheduleTimeInSeconds"), spec.ScheduleTimeInSeconds, "must be Unix seconds, or 0 for now"))
	}
	if spec.MaxExecutionTimeInSeconds < 0 || spec.MaxExecutionTimeInSeconds > 86400 {
		errs = append(errs, field.Invalid(path.Child("maxExecutionTimeInSeconds"), spec.MaxExecutionTimeInSeconds, "must be 0 to 86400 seconds"))
	}
	if ttl := spec.TTLSecondsAfterFinished; ttl != nil && *ttl < 0 {
		errs = append(errs, field.Invalid(path.Child("ttlSecondsAfterFinished"), *ttl, "must not be negative"))
	}
	return errs
}

// Schedule checks that the task does not ask to start in the past. It applies
// when the task is created only: time moves on afterwards.
func Schedule(spec *v1alpha1.BatchTaskSpec, now time.Time, skew time.Duration) field.ErrorList {
	if !schedule.Past(now, spec.ScheduleTimeInSeconds, skew) {
		return nil
	}
	at := time.Unix(spec.ScheduleTimeInSeconds, 0).UTC()
	return field.ErrorList{field.Invalid(field.NewPath("spec", "scheduleTimeInSeconds"), spec.ScheduleTimeInSeconds,
		fmt.Sprintf("is in the past: it is %s, and now it is %s; give a later time, or 0 for now",
			at.Format(time.RFC3339), now.UTC().Format(time.RFC3339)))}
}

// Topic checks that the product lets its devices subscribe to the task's topic.
func Topic(spec *v1alpha1.BatchTaskSpec, product *v1alpha1.Product) field.ErrorList {
	if spec.TaskType != v1alpha1.TaskTypePublishMessage || spec.Tasks.PublishMessageTask == nil || len(product.Spec.Topics) == 0 {
		return nil
	}
	topic := spec.Tasks.PublishMessageTask.Topic
	if slices.Contains(product.Spec.Topics, topic) {
		return nil
	}
	return field.ErrorList{field.NotSupported(field.NewPath("spec", "tasks", "publishMessageTask", "topic"), topic, product.Spec.Topics)}
}

// Warnings returns what is legal in a new task and perhaps not meant.
func Warnings(spec *v1alpha1.BatchTaskSpec, now time.Time) []string {
	var warnings []string
	if schedule.Clamped(now, spec.ScheduleTimeInSeconds) {
		warnings = append(warnings, fmt.Sprintf("spec.scheduleTimeInSeconds: %s is more than 86400 seconds ahead: the task will start 86400 seconds from now, at %s",
			time.Unix(spec.ScheduleTimeInSeconds, 0).UTC().Format(time.RFC3339), now.Add(schedule.MaxAhead).UTC().Format(time.RFC3339)))
	}
	switch {
	case spec.TaskType == v1alpha1.TaskTypeUpdateShadow && spec.Tasks.PublishMessageTask != nil:
		warnings = append(warnings, "spec.tasks.publishMessageTask: is ignored, because spec.taskType is UpdateShadow")
	case spec.TaskType == v1alpha1.TaskTypePublishMessage && spec.Tasks.UpdateShadowTask != nil:
		warnings = append(warnings, "spec.tasks.updateShadowTask: is ignored, because spec.taskType is PublishMessage")
	}
	return warnings
}

// details checks the block under tasks that belongs to the task type. The other
// block is ignored (CreateTask, Task), so it is not checked either.
func details(spec *v1alpha1.BatchTaskSpec, path *field.Path) field.ErrorList {
	tasks := path.Child("tasks")
	switch spec.TaskType {
	case v1alpha1.TaskTypeUpdateShadow:
		block := tasks.Child("updateShadowTask")
		if spec.Tasks.UpdateShadowTask == nil {
			return field.ErrorList{field.Required(block, "is required when taskType is UpdateShadow")}
		}
		return desired(spec.Tasks.UpdateShadowTask.Desired, block.Child("desired"))
	case v1alpha1.TaskTypePublishMessage:
		block := tasks.Child("publishMessageTask")
		if spec.Tasks.PublishMessageTask == nil {
			return field.ErrorList{field.Required(block, "is required when taskType is PublishMessage")}
		}
		return message(spec.Tasks.PublishMessageTask, block)
	default:
		return field.ErrorList{field.NotSupported(path.Child("taskType"), spec.TaskType,
			[]v1alpha1.TaskType{v1alpha1.TaskTypeUpdateShadow, v1alpha1.TaskTypePublishMessage})}
	}
}

func desired(text string, path *field.Path) field.ErrorList {
	if len(text) > shadow.MaxBytes {
		return field.ErrorList{field.TooLong(path, text, shadow.MaxBytes)}
	}
	if _, err := shadow.ParseDesired(text); err != nil {
		return field.ErrorList{field.Invalid(path, shorten(text), err.Error())}
	}
	return nil
}

func message(task *v1alpha1.PublishMessageTask, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if !TopicName(task.Topic) {
		errs = append(errs, field.Invalid(path.Child("topic"), shorten(task.Topic),
			"must be 1 to 128 letters, digits, ':', '_' and '-': the part of the MQTT topic after {productID}/{deviceName}/"))
	}
	if len(task.Payload) > MaxPayloadBytes {
		errs = append(errs, field.TooLong(path.Child("payload"), "", MaxPayloadBytes))
	}
	return errs
}

func filter(pattern string, path *field.Path) field.ErrorList {
	if pattern == "" {
		return field.ErrorList{field.Required(path, `must not be empty; ".*" matches all devices`)}
	}
	if n := utf8.RuneCountInString(pattern); n > namefilter.MaxLength {
		return field.ErrorList{field.TooLongCharacters(path, "", namefilter.MaxLength)}
	}
	if _, err := namefilter.Parse(pattern); err != nil {
		return field.ErrorList{field.Invalid(path, pattern, err.Error())}
	}
	return nil
}

// shorten cuts a value that is quoted in an error, on a character.
func shorten(value string) string {
	const most = 64
	if len(value) <= most {
		return value
	}
	return strings.ToValidUTF8(value[:most], "") + "…"
}
