package qcloud

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every kind in both versions, with a detail. The texts are those of the
// documents, character for character.
func TestWriteError(t *testing.T) {
	for _, tc := range []struct {
		kind     Kind
		wantV2   string
		wantV3   string
		wantCode string
	}{
		{KindTaskNotExist, failureV2JSON(5000, "TaskNotExist", "（10001）任务不存在: id: why"), "ResourceNotFound.TaskNotExist", "10001"},
		{KindInvalidValue, failureV2JSON(4000, "InvalidParameterValue", "（10002）参数非法: id: why"), "InvalidParameterValue", "10002"},
		{KindAlreadyStarted, failureV2JSON(4000, "TaskAlreadyStarted", "（10003）任务已经开始: id: why"), "FailedOperation.AsyncTaskAlreadyStarted", "10003"},
		{KindProductNotExist, failureV2JSON(5000, "ProductNotExist", "（10004）产品不存在: id: why"), "ResourceNotFound.ProductNotExist", "10004"},
		{KindLimitExceeded, failureV2JSON(4400, "PendingOrProcessingTasksExceedLimit", "（10005）等待和处理中的任务数过多: id: why"), "LimitExceeded.PengingOrProcessingTasksExceedLimit", "10005"},
		{KindMissingParameter, failureV2JSON(4000, "InvalidParameter", "（10101）请求参数非法: id: why"), "MissingParameter", "10101"},
		{KindInvalidParameter, failureV2JSON(4000, "InvalidParameter", "（10101）请求参数非法: id: why"), "InvalidParameter", "10101"},
		{KindBadRequest, failureV2JSON(4000, "BadRequest", "the request cannot be read: id: why"), "InvalidParameter", "4000"},
		{KindTooLarge, failureV2JSON(4000, "RequestTooLarge", "the request is too large: id: why"), "RequestSizeLimitExceeded", "4000"},
		{KindUnsupportedProtocol, failureV2JSON(4000, "UnsupportedProtocol", "the protocol is not supported: id: why"), "UnsupportedProtocol", "4000"},
		{KindUnknownAction, failureV2JSON(4000, "InvalidAction", "there is no such action: id: why"), "InvalidAction", "4000"},
		{KindNoSuchVersion, failureV2JSON(4000, "NoSuchVersion", "there is no such version: id: why"), "NoSuchVersion", "4000"},
		{KindSignatureFailure, failureV2JSON(4100, "SignatureFailure", "authentication failed: id: why"), "AuthFailure.SignatureFailure", "4100"},
		{KindSecretIDNotFound, failureV2JSON(4104, "SecretIdNotFound", "there is no such SecretId: id: why"), "AuthFailure.SecretIdNotFound", "4104"},
		{KindToken, failureV2JSON(4105, "TokenFailure", "tokens are not supported: id: why"), "AuthFailure.TokenFailure", "4105"},
		{KindExpired, failureV2JSON(4200, "SignatureExpire", "the request has expired: id: why"), "AuthFailure.SignatureExpire", "4200"},
		{KindRateLimited, failureV2JSON(4400, "RequestLimitExceeded", "too many requests: id: why"), "RequestLimitExceeded", "4400"},
		{KindReplay, failureV2JSON(4500, "ReplayAttack", "the request was seen before: id: why"), "AuthFailure.SignatureFailure", "4500"},
	} {
		t.Run(tc.kind.String(), func(t *testing.T) {
			err := fmt.Errorf("wrapped: %w", Errorf(tc.kind, "id", "%s", "why"))
			wantAnswer(t, written(t, V2, err), tc.wantV2)
			wantAnswer(t, written(t, V3, err), failureV3JSON(tc.wantV3, "id: why"))
			if got := AsError(err).Code(V2); got != tc.wantCode {
				t.Errorf("Code(V2) = %s, want %s", got, tc.wantCode)
			}
			if got := AsError(err).Code(V3); got != tc.wantV3 {
				t.Errorf("Code(V3) = %s, want %s", got, tc.wantV3)
			}
		})
	}
	for k := range kinds {
		if kinds[k].v3 == "" || kinds[k].text == "" || kinds[k].desc == "" || kinds[k].public == 0 {
			t.Errorf("kind %d lacks a code", k)
		}
	}
}

func written(t *testing.T, v Version, err error) string {
	t.Helper()
	w := httptest.NewRecorder()
	if err := WriteError(w, v, "b5b41468-520d-4192-b42f-595cc34b6c1c", err); err != nil {
		t.Fatal(err)
	}
	if got, want := w.Header().Get("Content-Type"), "application/json; charset=utf-8"; got != want {
		t.Errorf("Content-Type %q, want %q", got, want)
	}
	return w.Body.String()
}

// An internal error says nothing of what went wrong inside.
func TestWriteInternalError(t *testing.T) {
	for _, err := range []error{
		errors.New("secret of the house"),
		&Error{Kind: KindInternal, Parameter: "secret", Detail: "secret", Err: errors.New("secret")},
		&Error{Kind: 200, Detail: "secret"},
	} {
		wantAnswer(t, written(t, V2, err), failureV2JSON(6000, "InternalError", "（10100）内部服务器错误，请联系技术人员"))
		wantAnswer(t, written(t, V3, err), failureV3JSON("InternalError", "the call could not be carried out, through no fault of the caller"))
	}
}

func TestErrorWithoutDetail(t *testing.T) {
	err := &Error{Kind: KindLimitExceeded}
	wantAnswer(t, written(t, V2, err), failureV2JSON(4400, "PendingOrProcessingTasksExceedLimit", "（10005）等待和处理中的任务数过多"))
	wantAnswer(t, written(t, V3, err), failureV3JSON("LimitExceeded.PengingOrProcessingTasksExceedLimit", "too many tasks are waiting or processing"))
	if got, want := (&Error{Kind: KindExpired}).Message(V3), "the request has expired"; got != want {
		t.Errorf("Message = %q, want %q", got, want)
	}
	long := (&Error{Kind: KindInvalidValue, Detail: strings.Repeat("长", 5000)}).Message(V3)
	if got, want := len([]rune(long)), 1025; got != want {
		t.Errorf("a long detail has %d characters, want %d", got, want)
	}
}

func TestErrorTellsTheCauseToTheLog(t *testing.T) {
	cause := errors.New("cause")
	for _, tc := range []struct {
		err  *Error
		want string
	}{
		{&Error{Kind: KindInternal, Err: cause}, "InternalError: cause"},
		{&Error{Kind: KindProductNotExist, Parameter: "productID", Detail: "no such product", Err: cause}, "ProductNotExist: productID: no such product: cause"},
		{Errorf(KindInvalidValue, "id", "bad: %w", cause), "InvalidParameterValue: id: bad: cause"},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("Error() = %q, want %q", got, tc.want)
		}
		if !errors.Is(tc.err, cause) {
			t.Errorf("%v does not wrap its cause", tc.err)
		}
	}
}

// Whole bodies: the order of the fields and the types are those of the documents.
func TestWriteResult(t *testing.T) {
	task := Task{
		Type: "UpdateShadow", ID: "5ad5aa513332ea4cb86e9ad5", ProductID: "ABCDE12345", Status: StatusFailed,
		CreateTime: 1, UpdateTime: 2, DoneTime: 3, ScheduleTime: 4, RetCode: 10002, ErrMsg: "a < b & 状态",
		Percent: 50, AllDeviceCnt: 2, DoneDeviceCnt: 1,
	}
	for _, tc := range []struct {
		name           string
		result         Result
		wantV2, wantV3 string
	}{
		{
			"CreateTask",
			CreateTaskResult{TaskID: "5ad5aa513332ea4cb86e9ad5"},
			`{"taskId":"5ad5aa513332ea4cb86e9ad5","message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"TaskId":"5ad5aa513332ea4cb86e9ad5","RequestId":"r"}}`,
		},
		{
			"DescribeTask",
			DescribeTaskResult{Task: task},
			`{"type":"UpdateShadow","id":"5ad5aa513332ea4cb86e9ad5","productID":"ABCDE12345","status":4,"createTime":1,"updateTime":2,"doneTime":3,"scheduleTime":4,"retCode":10002,"errMsg":"a < b & 状态","percent":50,"allDeviceCnt":2,"doneDeviceCnt":1,"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"Type":"UpdateShadow","Id":"5ad5aa513332ea4cb86e9ad5","ProductId":"ABCDE12345","Status":4,"CreateTime":1,"UpdateTime":2,"DoneTime":3,"ScheduleTime":4,"RetCode":10002,"ErrMsg":"a < b & 状态","Percent":50,"AllDeviceCnt":2,"DoneDeviceCnt":1,"RequestId":"r"}}`,
		},
		{
			"ListTasks",
			ListTasksResult{Tasks: []Task{task}, Total: 7},
			`{"tasks":[{"type":"UpdateShadow","id":"5ad5aa513332ea4cb86e9ad5","productID":"ABCDE12345","status":4,"createTime":1,"updateTime":2,"retCode":10002,"errMsg":"a < b & 状态"}],"taskTotalCount":7,"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"TotalCount":7,"Tasks":[{"Type":"UpdateShadow","Id":"5ad5aa513332ea4cb86e9ad5","ProductId":"ABCDE12345","Status":4,"CreateTime":1,"UpdateTime":2,"RetCode":10002,"ErrMsg":"a < b & 状态"}],"RequestId":"r"}}`,
		},
		{
			"no tasks",
			ListTasksResult{},
			`{"tasks":[],"taskTotalCount":0,"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"TotalCount":0,"Tasks":[],"RequestId":"r"}}`,
		},
		{
			"CancelTask",
			CancelTaskResult{},
			`{"message":"","codeDesc":"Success","code":0}`,
			`{"Response":{"RequestId":"r"}}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for version, want := range map[Version]string{V2: tc.wantV2, V3: tc.wantV3} {
				w := httptest.NewRecorder()
				if err := WriteResult(w, version, "r", tc.result); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want+"\n", w.Body.String()); diff != "" {
					t.Errorf("%v (-want +got):\n%s", version, diff)
				}
			}
		})
	}
}
