package shim

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/taskid"
)

const (
	// maxSchedule is the greatest schedule that the schema takes. The call takes any
	// later one as well, for the latest that there is (CreateTask,
	// scheduleTimeInSeconds), and callers do send milliseconds.
	maxSchedule = 253402300799
	// maxLabelled is how many tasks with a label are looked at to find the one whose ID it
	// is. There is one, unless somebody has changed labels.
	maxLabelled = 32
	// fieldOwner is the manager of the fields that the shim writes.
	fieldOwner = client.FieldOwner("batchtask-shim")
)

// account is whose tasks a call is about, and in which version it is answered.
type account struct {
	namespace string
	version   qcloud.Version
}

// tasks carries out what callers ask for. Each call reads and writes at the API
// server itself, so that a caller sees what it did a moment ago, through whichever
// replica.
type tasks struct {
	client  client.Client
	clock   clock.PassiveClock
	listing *listing
}

// do returns a *[qcloud.Error] for what is the caller's fault; any other error is
// internal.
func (t tasks) do(ctx context.Context, a account, request qcloud.Request) (qcloud.Result, error) {
	switch request := request.(type) {
	case *qcloud.CreateTask:
		return t.create(ctx, a, request)
	case *qcloud.DescribeTask:
		return t.describe(ctx, a, request)
	case *qcloud.ListTasks:
		return t.list(ctx, a, request)
	case *qcloud.CancelTask:
		return t.cancel(ctx, a, request)
	default:
		return nil, fmt.Errorf("nothing carries out a %T", request)
	}
}

// create makes a task whose name is its ID. It asks once: were it to try again
// after an answer that was lost, the first attempt might hold a slot of the
// account, and the second be refused for that. A caller that gets an internal error
// finds by ListTasks whether its task exists.
func (t tasks) create(ctx context.Context, a account, request *qcloud.CreateTask) (qcloud.Result, error) {
	task := &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: taskid.New(t.clock.Now())},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType:                  v1alpha1.TaskType(request.TaskType),
			ProductID:                 request.ProductID,
			DeviceNameFilter:          request.DeviceNameFilter,
			ScheduleTimeInSeconds:     min(request.ScheduleTimeInSeconds, maxSchedule),
			MaxExecutionTimeInSeconds: request.MaxExecutionTimeInSeconds,
			TTLSecondsAfterFinished:   ptr.To(v1alpha1.LegacyTTLSecondsAfterFinished),
		},
	}
	if u := request.UpdateShadow; u != nil {
		task.Spec.Tasks.UpdateShadowTask = &v1alpha1.UpdateShadowTask{Desired: u.Desired}
	}
	if p := request.PublishMessage; p != nil {
		task.Spec.Tasks.PublishMessageTask = &v1alpha1.PublishMessageTask{Topic: p.Topic, Payload: p.Payload}
	}
	if err := t.client.Create(ctx, task, fieldOwner); err != nil {
		return nil, refusal(a.version, fmt.Errorf("create task %s/%s: %w", task.Namespace, task.Name, err))
	}
	return qcloud.CreateTaskResult{TaskID: task.Name}, nil
}

func (t tasks) describe(ctx context.Context, a account, request *qcloud.DescribeTask) (qcloud.Result, error) {
	task, err := t.find(ctx, a, request.ID)
	if err != nil {
		return nil, err
	}
	return qcloud.DescribeTaskResult{Task: describe(task)}, nil
}

func (t tasks) list(ctx context.Context, a account, request *qcloud.ListTasks) (qcloud.Result, error) {
	page, total, err := t.listing.page(ctx, a.namespace, request.Offset, request.Limit)
	if err != nil {
		return nil, err
	}
	return qcloud.ListTasksResult{Tasks: page, Total: total}, nil
}

// cancel cancels a task that has not started. The write names the version of the
// object in which the task was still waiting, and so does the reconciler's when it
// starts the task: of the two, one is refused by the API server and looks again. So
// a task that this reports as cancelled never starts.
func (t tasks) cancel(ctx context.Context, a account, request *qcloud.CancelTask) (qcloud.Result, error) {
	for attempt := 0; ; attempt++ {
		task, err := t.find(ctx, a, request.ID)
		if err != nil {
			return nil, err
		}
		switch status(task) {
		case qcloud.StatusWaiting:
		case qcloud.StatusCancelled:
			if task.Status.StartTime == nil {
				return qcloud.CancelTaskResult{}, nil // so a call can be repeated
			}
			fallthrough
		default:
			return nil, qcloud.Errorf(qcloud.KindAlreadyStarted, a.version.Parameter("id"), "the task is %s", task.Status.Phase)
		}
		before := task.DeepCopy()
		task.Spec.Cancel = true
		err = t.client.Patch(ctx, task, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), fieldOwner)
		switch {
		case err == nil:
			return qcloud.CancelTaskResult{}, nil
		case !apierrors.IsConflict(err) && !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("cancel task %s/%s: %w", task.Namespace, task.Name, err)
		}
		if pause(ctx, attempt) != nil {
			return nil, fmt.Errorf("cancel task %s/%s: others write it all the time: %w", task.Namespace, task.Name, err)
		}
	}
}

// find returns the account's task with this ID. A task that was made by the shim
// has it as its name; one that was made otherwise, on a label.
func (t tasks) find(ctx context.Context, a account, id string) (*v1alpha1.BatchTask, error) {
	missing := qcloud.Errorf(qcloud.KindTaskNotExist, a.version.Parameter("id"), "there is no task with this ID")
	if !taskid.Valid(id) {
		return nil, missing
	}
	var task v1alpha1.BatchTask
	err := t.client.Get(ctx, client.ObjectKey{Namespace: a.namespace, Name: id}, &task)
	if err == nil {
		return &task, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read task %s/%s: %w", a.namespace, id, err)
	}
	var labelled metav1.PartialObjectMetadataList // the tasks may be long, and many have the label
	labelled.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTaskList"))
	if err := t.client.List(ctx, &labelled, client.InNamespace(a.namespace), client.MatchingLabels{v1alpha1.LabelTaskID: id}); err != nil {
		return nil, fmt.Errorf("look for task %s in namespace %s: %w", id, a.namespace, err)
	}
	for i := range labelled.Items[:min(len(labelled.Items), maxLabelled)] {
		err := t.client.Get(ctx, client.ObjectKeyFromObject(&labelled.Items[i]), &task)
		switch {
		// The label can be changed by whoever may edit the task; the status cannot.
		case err == nil && taskID(&task) == id:
			return &task, nil
		case client.IgnoreNotFound(err) != nil:
			return nil, fmt.Errorf("read task %s/%s: %w", a.namespace, labelled.Items[i].Name, err)
		}
	}
	return nil, missing
}
