package shim

import (
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
)

// refusal turns the API server's refusal of a new task into what the caller is
// told, by its causes; prose is passed on, never read. What is not the caller's
// fault, and what this does not know, stays as it is and so is an internal error.
func refusal(version qcloud.Version, err error) error {
	var refused apierrors.APIStatus
	if !errors.As(err, &refused) || refused.Status().Details == nil {
		return err
	}
	for _, cause := range refused.Status().Details.Causes {
		kind, known := kindOf(refused.Status().Reason, cause.Type)
		if !known {
			continue
		}
		refusal := &qcloud.Error{Kind: kind, Err: err}
		if kind != qcloud.KindLimitExceeded {
			// The limit's own message speaks of objects that the caller does not know.
			refusal.Parameter = version.Parameter(strings.TrimPrefix(cause.Field, "spec."))
			refusal.Detail = cause.Message
		}
		return refusal
	}
	return err
}

// kindOf tells what a cause is to the caller. A product that exists and is not
// ready is none of its doing: it is an internal error.
func kindOf(reason metav1.StatusReason, cause metav1.CauseType) (kind qcloud.Kind, known bool) {
	switch {
	case reason == metav1.StatusReasonForbidden && cause == v1alpha1.CauseTaskLimitExceeded:
		return qcloud.KindLimitExceeded, true
	case reason != metav1.StatusReasonInvalid:
		return 0, false
	}
	switch cause {
	case v1alpha1.CauseProductNotFound:
		return qcloud.KindProductNotExist, true
	case metav1.CauseTypeFieldValueRequired:
		return qcloud.KindMissingParameter, true
	case metav1.CauseTypeTypeInvalid:
		return qcloud.KindInvalidParameter, true
	default:
		// FieldValueInvalid, FieldValueNotSupported, FieldValueTooLong and the like.
		return qcloud.KindInvalidValue, strings.HasPrefix(string(cause), "FieldValue")
	}
}
