package qcloud

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Kind says what was wrong with a call. Each kind has its codes in both versions
// of the API.
type Kind uint8

// The kinds of errors. Internal is the zero value: what nobody classified is a
// fault of the server.
const (
	// KindInternal : the call could not be carried out for no fault of the caller's.
	KindInternal Kind = iota
	// KindTaskNotExist : the account has no task with this ID.
	KindTaskNotExist
	// KindInvalidValue : a parameter has the right type and a value that is not
	// legal: out of range, not a regular expression, not a JSON object in a string.
	KindInvalidValue
	// KindAlreadyStarted : CancelTask on a task that has been scheduled.
	KindAlreadyStarted
	// KindProductNotExist : the account has no product with this ID.
	KindProductNotExist
	// KindLimitExceeded : the account has as many waiting and processing tasks as
	// it may have.
	KindLimitExceeded
	// KindMissingParameter : a required parameter is not there.
	KindMissingParameter
	// KindInvalidParameter : a parameter is of the wrong type, given twice, or not
	// text in UTF-8.
	KindInvalidParameter
	// KindBadRequest : the parameters of the call cannot be read at all.
	KindBadRequest
	// KindTooLarge : the call is larger than [MaxBytes] or has more than
	// [MaxParameters] parameters.
	KindTooLarge
	// KindUnsupportedProtocol : the method is neither GET nor POST, or the body is of
	// a type that the API does not take.
	KindUnsupportedProtocol
	// KindUnknownAction : the version has no such action.
	KindUnknownAction
	// KindNoSuchVersion : V3 was called with another Version than [VersionV3].
	KindNoSuchVersion
	// KindSignatureFailure : the signature is missing or wrong, or does not cover a
	// parameter of the call.
	KindSignatureFailure
	// KindSecretIDNotFound : there are no credentials with this SecretId.
	KindSecretIDNotFound
	// KindToken : the call carries a Token; temporary credentials are not supported.
	KindToken
	// KindExpired : the Timestamp is too far from the server's clock.
	KindExpired
	// KindReplay : a call with this SecretId, Timestamp and Nonce was seen before.
	KindReplay
	// KindRateLimited : the SecretId makes more calls than it may.
	KindRateLimited
)

// codes are how a kind is told to callers.
type codes struct {
	module string // the module code of V2; "" where there is none
	text   string // the module's fixed text, exactly as the documents write it; without a module code a plain one
	public int    // the public code of V2
	desc   string // codeDesc of V2
	v3     string // Code of V3
	// english is the Message of V3 where there is no detail; "" for text, which is
	// English where there is no module code.
	english string
}

var kinds = [...]codes{
	KindInternal:            {"10100", "内部服务器错误，请联系技术人员", 6000, "InternalError", "InternalError", "the call could not be carried out, through no fault of the caller"},
	KindTaskNotExist:        {"10001", "任务不存在", 5000, "TaskNotExist", "ResourceNotFound.TaskNotExist", "there is no such task"},
	KindInvalidValue:        {"10002", "参数非法", 4000, "InvalidParameterValue", "InvalidParameterValue", "a parameter has an illegal value"},
	KindAlreadyStarted:      {"10003", "任务已经开始", 4000, "TaskAlreadyStarted", "FailedOperation.AsyncTaskAlreadyStarted", "the task has been started"},
	KindProductNotExist:     {"10004", "产品不存在", 5000, "ProductNotExist", "ResourceNotFound.ProductNotExist", "there is no such product"},
	KindMissingParameter:    {"10101", "请求参数非法", 4000, "InvalidParameter", "MissingParameter", "a parameter is missing"},
	KindInvalidParameter:    {"10101", "请求参数非法", 4000, "InvalidParameter", "InvalidParameter", "a parameter has the wrong type"},
	KindBadRequest:          {"", "the request cannot be read", 4000, "BadRequest", "InvalidParameter", ""},
	KindTooLarge:            {"", "the request is too large", 4000, "RequestTooLarge", "RequestSizeLimitExceeded", ""},
	KindUnsupportedProtocol: {"", "the protocol is not supported", 4000, "UnsupportedProtocol", "UnsupportedProtocol", ""},
	KindUnknownAction:       {"", "there is no such action", 4000, "InvalidAction", "InvalidAction", ""},
	KindNoSuchVersion:       {"", "there is no such version", 4000, "NoSuchVersion", "NoSuchVersion", ""},
	KindSignatureFailure:    {"", "authentication failed", 4100, "SignatureFailure", "AuthFailure.SignatureFailure", ""},
	KindSecretIDNotFound:    {"", "there is no such SecretId", 4104, "SecretIdNotFound", "AuthFailure.SecretIdNotFound", ""},
	KindToken:               {"", "tokens are not supported", 4105, "TokenFailure", "AuthFailure.TokenFailure", ""},
	KindExpired:             {"", "the request has expired", 4200, "SignatureExpire", "AuthFailure.SignatureExpire", ""},
	KindReplay:              {"", "the request was seen before", 4500, "ReplayAttack", "AuthFailure.SignatureFailure", ""},
	KindRateLimited:         {"", "too many requests", 4400, "RequestLimitExceeded", "RequestLimitExceeded", ""},
	// Clients compare the V3 code, so its spelling stays.
	KindLimitExceeded: {"10005", "等待和处理中的任务数过多", 4400, "PendingOrProcessingTasksExceedLimit", "LimitExceeded.PengingOrProcessingTasksExceedLimit", "too many tasks are waiting or processing"},
}

func (k Kind) codes() codes {
	if int(k) >= len(kinds) {
		k = KindInternal
	}
	return kinds[k]
}

// String returns the kind's code in V3, without its class.
func (k Kind) String() string {
	code := k.codes().v3
	return code[strings.IndexByte(code, '.')+1:]
}

// Error says why a call is refused.
type Error struct {
	// Kind says what is wrong.
	Kind Kind
	// Parameter is the parameter that is wrong, spelled as in the version of the
	// call; empty where none is.
	Parameter string
	// Detail tells the caller in English what is wrong. For KindInternal it is not
	// told.
	Detail string
	// Err is the cause, for the server's log; it may be nil, and callers never see it.
	Err error
}

// Errorf returns an Error about a parameter, or about none if it is empty, with a
// detail for the caller. An error among the arguments of a %w becomes the cause.
func Errorf(kind Kind, parameter, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Parameter: parameter, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// AsError returns the Error that err is or wraps; any other error becomes the
// cause of one of KindInternal.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindInternal, Err: err}
}

// Error returns kind, parameter, detail and cause, for logs.
func (e *Error) Error() string {
	parts := []string{e.Kind.String()}
	if told := e.told(); told != "" {
		parts = append(parts, told)
	}
	if e.Err != nil && !strings.Contains(e.Detail, e.Err.Error()) {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Code returns the most telling code of the error in a version of the API: in V2
// the module code, or the public code where there is none; in V3 Code. There are
// few, so it can label a metric.
func (e *Error) Code(v Version) string {
	c := e.Kind.codes()
	switch {
	case v == V3:
		return c.v3
	case c.module != "":
		return c.module
	default:
		return strconv.Itoa(c.public)
	}
}

// Message returns what the caller reads: in V2 "（module code）fixed text: detail",
// or "text: detail" where there is no module code; in V3 the detail alone, or
// the kind in English. A detail is cut after 1024 characters.
func (e *Error) Message(v Version) string {
	c := e.Kind.codes()
	detail := e.told()
	if c == kinds[KindInternal] {
		// What went wrong inside is for the log: it may name what is not the caller's.
		detail = ""
	}
	text := c.text
	switch {
	case v == V3 && detail != "":
		return detail
	case v == V3 && c.english != "":
		return c.english
	case v == V2 && c.module != "":
		text = "（" + c.module + "）" + text
	}
	if detail == "" {
		return text
	}
	return text + ": " + detail
}

// told returns parameter and detail, cut to a length that fits an answer.
func (e *Error) told() string {
	detail := e.Detail
	if e.Parameter != "" {
		detail = strings.TrimSuffix(e.Parameter+": "+detail, ": ")
	}
	const most = 1024
	if len(detail) <= most {
		return detail
	}
	if runes := []rune(detail); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return detail
}
