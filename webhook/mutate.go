package webhook

import (
	"context"
	"encoding/json"
	"fmt"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/taskid"
)

// identify gives new tasks their IDs. It reads nothing of an object but its name and its
// labels: it is asked before the schema has been applied, which tells whatever else is
// wrong field by field.
type identify struct{ clock clock.PassiveClock }

var _ admission.Handler = identify{}

// Handle implements [admission.Handler].
func (i identify) Handle(_ context.Context, req admission.Request) admission.Response {
	labelled, err := i.label(req.Object.Raw)
	if err != nil {
		return admission.Allowed(err.Error()) // it is for the API server to refuse
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, labelled)
}

// label returns an object with its ID on the label, and all else as it was. A task whose
// name has the shape of an ID, as the HTTP front names them, keeps that.
func (i identify) label(object []byte) ([]byte, error) {
	var fields, metadata map[string]json.RawMessage
	var names struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	}
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	for _, into := range []any{&metadata, &names} {
		if err := json.Unmarshal(fields["metadata"], into); err != nil {
			return nil, fmt.Errorf("read metadata: %w", err)
		}
	}
	id := names.Name
	if !taskid.Valid(id) {
		id = taskid.New(i.clock.Now())
	}
	if names.Labels == nil {
		names.Labels = map[string]string{}
	}
	names.Labels[v1alpha1.LabelTaskID] = id
	var err error
	if metadata["labels"], err = json.Marshal(names.Labels); err != nil {
		return nil, fmt.Errorf("write labels: %w", err)
	}
	if fields["metadata"], err = json.Marshal(metadata); err != nil {
		return nil, fmt.Errorf("write metadata: %w", err)
	}
	return json.Marshal(fields)
}
